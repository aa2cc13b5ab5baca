"""A device sends through the ingestion gateway, and what it sent is read back through the API gateway."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import nanoarrow
import pytest
from nanoarrow.ipc import InputStream

from runtime import clock
from tests.support.platform import Running, platform

pytestmark = pytest.mark.end_to_end
JSON = ("-H", "Content-Type: application/json")
COUNT = 12


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with platform(tmp_path_factory.mktemp("platform")) as started:
        yield started


@pytest.fixture(scope="module")
def begun_ms(running: Running) -> int:
    """Send twelve readings of device-1 over mutual TLS; return the time of the first."""
    now_ms = clock.unix_ms() // 1000 * 1000 - 60_000
    send(running, now_ms, COUNT)
    until = time.monotonic() + 20
    while len(ask(running, "/v1", "/telemetry")["items"]) < COUNT:
        assert time.monotonic() < until, "the records do not come"
        time.sleep(0.1)
    return now_ms


def send(running: Running, first_ms: int, count: int, device: str = "device-1") -> None:
    readings = [{"ts": first_ms + n * 1000, "metrics": {"temperature": 20 + n / 4}} for n in range(count)]
    issued = running.node.ca.device("demo", device)
    status, body = running.curl(
        *("--cert", str(issued.certificate), "--key", str(issued.key)),
        *(*JSON, "-d", json.dumps(readings)),
        f"{running.ingest_url}/v1/telemetry/sensors",
    )
    assert status == 202, body


def url(running: Running, version: str, path: str) -> str:
    return f"{running.url}{version}/tenants/demo/devices/device-1{path}"


def ask(running: Running, version: str, path: str) -> Any:
    status, body = running.curl("-H", f"X-API-Key: {running.key}", url(running, version, path))
    assert status == 200, body
    return json.loads(body)


async def fetch(running: Running, path: str, accept: str) -> tuple[bytes, Any]:
    headers = {"X-API-Key": running.key, "Accept": accept}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.get(url(running, "/v2", path), ssl=running.tls()) as response,
    ):
        assert response.status == 200
        return await response.read(), response.headers


def test_version_1_has_the_records_and_says_that_it_is_deprecated(running: Running, begun_ms: int) -> None:
    items = ask(running, "/v1", "/telemetry?stream=sensors")["items"]
    assert [item["payload"]["ts"] for item in items] == [begun_ms + n * 1000 for n in range(COUNT)]
    head = ("-D", "-", "-o", "/dev/null", "-H", f"X-API-Key: {running.key}")
    _, heads = running.curl(*head, url(running, "/v1", "/telemetry"))
    told = {line.partition(":")[0].lower() for line in heads.splitlines()}
    assert {"deprecation", "sunset", "link"} <= told


def test_version_2_has_values_in_pages_and_buckets(running: Running, begun_ms: int) -> None:
    page = ask(running, "/v2", "/telemetry?metric=temperature&limit=9")
    rest = ask(running, "/v2", f"/telemetry?metric=temperature&cursor={page['next']}")
    assert [row["value"] for row in page["items"] + rest["items"]] == [20 + n / 4 for n in range(COUNT)]
    window = f"from={begun_ms}&to={begun_ms + 60_000}"
    buckets = ask(running, "/v2", f"/telemetry/buckets?every=1d&{window}")["items"]
    assert sum(bucket["count"] for bucket in buckets) == COUNT
    assert ask(running, "/v2", "/latest")["items"][0]["value"] == 22.75
    assert [row["metric"] for row in ask(running, "/v2", "/metrics")["items"]] == ["temperature"]


async def test_version_2_has_lines_and_arrow(running: Running, begun_ms: int) -> None:
    body, headers = await fetch(running, "/telemetry", "application/x-ndjson")
    assert [json.loads(line)["ts"] for line in body.splitlines()] == [
        begun_ms + n * 1000 for n in range(COUNT)
    ]
    assert headers["Content-Type"] == "application/x-ndjson"
    body, headers = await fetch(running, "/telemetry?limit=5", "application/vnd.apache.arrow.stream")
    found = nanoarrow.ArrayStream(InputStream.from_readable(io.BytesIO(body))).read_all().to_pylist()
    assert [row["number"] for row in found] == [20 + n / 4 for n in range(5)]
    assert headers["Next-Cursor"]


async def test_live_shows_what_comes(running: Running, begun_ms: int) -> None:
    address = f"{running.url.replace('https', 'wss')}/v1/live"
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession(headers={"X-API-Key": running.key}) as client,
        client.ws_connect(address, ssl=running.tls()) as socket,
    ):
        await socket.send_json({"subscribe": {"devices": ["device-*"], "every_ms": 50}})
        told = await socket.receive_json()
        assert told["subscribed"]["tenant"] == "demo"
        while told.get("tail") != "live":
            told = await socket.receive_json()
        await asyncio.to_thread(send, running, begun_ms + 30_000, 1, "device-2")
        while "values" not in told:
            told = await socket.receive_json()
    [value] = told["values"]
    assert (value["device"], value["metric"], value["value"]) == ("device-2", "temperature", 20.0)


def test_the_document_of_each_version_has_its_own_operations(running: Running) -> None:
    for version, wanted in (("v1", True), ("v2", False)):
        status, body = running.curl(f"{running.url}/{version}/openapi.json")
        assert status == 200
        of_devices = json.loads(body)["paths"][f"/{version}/tenants/{{tenant}}/devices/{{device}}/telemetry"]
        assert of_devices["get"].get("deprecated", False) is wanted
