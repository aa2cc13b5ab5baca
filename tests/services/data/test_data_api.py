"""The data service over HTTP, on records that a sink `local` has written."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import nanoarrow
import pytest
from nanoarrow.ipc import InputStream

from ingest.records import Encoding
from services.data.formats import ARROW, NDJSON
from services.data.reader import Reader
from services.web.refusal import Refused
from tests.support.data_service import Answer, Service, data_service
from tests.support.feeds import group, payload

MINUTE = 60_000
START = 1_764_000_000_000 // MINUTE * MINUTE


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with data_service(tmp_path / "node") as opened:
        yield opened


def reading(ts: int, **metrics: Any) -> bytes:
    return json.dumps({"ts": ts, "metrics": metrics}).encode()


async def with_readings(service: Service) -> None:
    """Give pump-1 three minutes of two metrics, a reading a second; pump-2 and another tenant one each."""
    readings = [reading(START + n * 1000, temperature=n / 2, door=n % 2 == 0) for n in range(180)]
    await service.has(
        group(1, readings),
        group(2, [reading(START, temperature=-1.0, note="cold")], device="pump-2"),
        group(3, [reading(START, temperature=99.0)], tenant="other"),
    )


def rows_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return [dict(row) for row in answer.body["items"]]


def arrow_rows(content: bytes) -> list[dict[str, Any]]:
    stream = nanoarrow.ArrayStream(InputStream.from_readable(io.BytesIO(content)))
    return list(stream.read_all().to_pylist())


async def test_values_come_by_time_in_pages(service: Service) -> None:
    await with_readings(service)
    found: list[dict[str, Any]] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        answer = await service.of("pump-1", params={"limit": 77, "cursor": cursor})
        found += rows_of(answer)
        cursor, pages = answer.body["next"], pages + 1
    assert pages == 5
    assert found == [
        {"ts": START + n * 1000, "stream": "main", "metric": metric, "value": value}
        for n in range(180)
        for metric, value in (("door", n % 2 == 0), ("temperature", n / 2))
    ]


async def test_values_are_selected_by_stream_metric_and_time(service: Service) -> None:
    await with_readings(service)
    await service.has(group(9, [reading(START + 5000, temperature=7, flow=1)], stream="extra"))
    params: Any = {"metric": "temperature", "from": START + 3000, "to": START + 6000}
    values = [(row["stream"], row["value"]) for row in rows_of(await service.of("pump-1", params=params))]
    assert values == [("main", 1.5), ("main", 2.0), ("main", 2.5), ("extra", 7.0)]
    params = [("stream", "extra"), ("metric", "temperature"), ("metric", "flow")]
    assert [row["metric"] for row in rows_of(await service.of("pump-1", params=params))] == [
        "flow",
        "temperature",
    ]
    assert rows_of(await service.of("nobody")) == []


async def test_the_newest_come_first_when_they_are_wanted_so(service: Service) -> None:
    await with_readings(service)
    params = {"metric": "temperature", "order": "desc", "limit": 3}
    answer = await service.of("pump-1", params=params)
    assert [row["value"] for row in rows_of(answer)] == [89.5, 89.0, 88.5]
    answer = await service.of("pump-1", params={**params, "cursor": answer.body["next"]})
    assert [row["value"] for row in rows_of(answer)] == [88.0, 87.5, 87.0]


async def test_values_are_down_sampled(service: Service) -> None:
    await with_readings(service)
    params: Any = {"every": "1m", "from": START, "to": START + 3 * MINUTE, "metric": "temperature"}
    assert rows_of(await service.of("pump-1", "/telemetry/buckets", params=params)) == [
        {
            "start": START + n * MINUTE,
            "stream": "main",
            "metric": "temperature",
            "count": 60,
            "min": 30.0 * n,
            "max": 30.0 * n + 29.5,
            "mean": 30.0 * n + 14.75,
            "last": 30.0 * n + 29.5,
        }
        for n in range(3)
    ]
    params = {"every": "90s", "from": START, "metric": "door"}
    [first, second] = rows_of(await service.of("pump-1", "/telemetry/buckets", params=params))
    assert (first["mean"], second["count"], second["last"]) == (0.5, 90, 0.0)


async def test_buckets_come_in_pages_and_text_has_none(service: Service) -> None:
    await with_readings(service)
    params: Any = {"every": "10s", "from": START, "to": START + 10 * MINUTE, "limit": 5}
    whole = rows_of(await service.of("pump-1", "/telemetry/buckets", params={**params, "limit": 1000}))
    assert len(whole) == 36
    found: list[Any] = []
    cursor = ""
    while cursor or not found:
        answer = await service.of("pump-1", "/telemetry/buckets", params={**params, "cursor": cursor})
        found += rows_of(answer)
        cursor = answer.body["next"]
    assert found == whole
    rows = rows_of(await service.of("pump-2", "/telemetry/buckets", params=params))
    assert [row["metric"] for row in rows] == ["temperature"]


async def test_all_comes_as_lines_and_as_arrow(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.data.api.values.NDJSON_PAGE", 50)
    monkeypatch.setattr("services.data.api.values.ARROW_PAGE", 70)
    await with_readings(service)
    pages = rows_of(await service.of("pump-1", params={"limit": 1000}))
    lines = await service.of("pump-1", accept=NDJSON)
    assert [msgspec.json.decode(line) for line in lines.body.splitlines()] == pages
    assert lines.headers["Content-Type"] == NDJSON
    arrow = await service.of("pump-1", accept=ARROW)
    found = arrow_rows(arrow.body)
    assert [row["ts"] for row in found] == [row["ts"] for row in pages]
    assert [row["number"] if row["boolean"] is None else row["boolean"] for row in found] == [
        row["value"] for row in pages
    ]
    assert "Next-Cursor" not in arrow.headers
    params: Any = {"every": "1m", "from": START}
    buckets = await service.of("pump-1", "/telemetry/buckets", accept=ARROW, params=params)
    assert arrow_rows(buckets.body) == rows_of(
        await service.of("pump-1", "/telemetry/buckets", params=params)
    )


@pytest.mark.parametrize("accept", [NDJSON, ARROW])
async def test_a_stream_that_is_cut_says_where_it_goes_on(service: Service, accept: str) -> None:
    await with_readings(service)

    def values(answer: Answer) -> list[Any]:
        if accept == ARROW:
            return [row["number"] for row in arrow_rows(answer.body)]
        return [msgspec.json.decode(line)["value"] for line in answer.body.splitlines()]

    params: Any = {"metric": "temperature", "limit": 100}
    first = await service.of("pump-1", accept=accept, params=params)
    assert values(first) == [n / 2 for n in range(100)]
    params["cursor"] = first.headers["Next-Cursor"]
    second = await service.of("pump-1", accept=accept, params=params)
    assert values(second) == [n / 2 for n in range(100, 180)]
    assert "Next-Cursor" not in second.headers
    nothing = await service.of("nobody", accept=accept)
    assert nothing.status == 200
    assert values(nothing) == []


async def test_records_come_as_they_were_in_version_1(service: Service) -> None:
    await with_readings(service)
    await service.has(group(8, [b"\x00\xff"], stream="blobs", encoding=Encoding.RAW))
    rows = rows_of(await service.of("pump-1", version="v1", params={"limit": 2}))
    assert rows == [
        {
            "id": "n1-b1-1-179",
            "stream": "main",
            "received_at": 1_764_000_000_000,
            "payload": {"ts": START + 179_000, "metrics": {"temperature": 89.5, "door": False}},
        },
        {"id": "n1-b1-8-0", "stream": "blobs", "received_at": 1_764_000_000_000, "payload": "AP8="},
    ]
    assert len(rows_of(await service.of("pump-1", version="v1", params={"stream": "blobs"}))) == 1
    late = {"since": 1_764_000_000_001}
    assert rows_of(await service.of("pump-1", version="v1", params=late)) == []


async def test_the_latest_values_and_the_metrics_of_a_device(service: Service) -> None:
    await with_readings(service)
    await service.has(
        group(4, [reading(START + 1, note="late", temperature=0)], device="pump-2"),
        group(5, [reading(START - 9, note="older")], device="pump-2"),
    )
    assert rows_of(await service.of("pump-2", "/latest")) == [
        {"stream": "main", "metric": name, "ts": START + 1, "value": value, "received_at": 1_764_000_000_000}
        for name, value in (("note", "late"), ("temperature", 0.0))
    ]
    answer = await service.of("pump-1", "/metrics", params={"limit": 1})
    assert rows_of(answer) == [
        {"stream": "main", "metric": "door", "type": "boolean", "last_ts": START + 179_000}
    ]
    answer = await service.of("pump-1", "/metrics", params={"limit": 1, "cursor": answer.body["next"]})
    assert [row["type"] for row in rows_of(answer)] == ["number"]
    assert answer.body["next"] == ""


async def test_any_text_and_any_number_comes_back_as_it_was(service: Service) -> None:
    texts = ["", "\x00", "a\x00b", "'; DROP TABLE points; --", "\u2028", "😀", "x" * 1024, '"\\']
    numbers = [1e308, -1e308, 5e-324, -0.0, 2**53 + 1, 1e22]
    await service.has(group(1, [reading(START + n, v=v) for n, v in enumerate([*texts, *numbers])]))
    rows = rows_of(await service.of("pump-1"))
    assert [row["value"] for row in rows] == [*texts, *map(float, numbers)]
    params: Any = {"every": "1d", "from": START // 86_400_000 * 86_400_000}
    [bucket] = rows_of(await service.of("pump-1", "/telemetry/buckets", params=params))
    assert (bucket["count"], bucket["max"]) == (len(numbers), 1e308)


@pytest.mark.parametrize(
    ("path", "params", "slug"),
    [
        ("/telemetry", {"limit": "-1"}, "invalid-request"),
        ("/telemetry", {"limit": "1000001"}, "invalid-request"),
        ("/telemetry", {"from": "9", "to": "9"}, "invalid-request"),
        ("/telemetry", {"order": "up"}, "invalid-request"),
        ("/telemetry", {"cursor": "AAAA"}, "invalid-cursor"),
        ("/telemetry", {"wat": "1"}, "invalid-request"),
        ("/telemetry/buckets", {}, "invalid-request"),
        ("/telemetry/buckets", {"every": "1m"}, "invalid-request"),
        ("/telemetry/buckets", {"every": "0s", "from": "1"}, "invalid-request"),
        ("/telemetry/buckets", {"every": "1ms", "from": "1", "to": "1000002"}, "invalid-request"),
        ("/latest", {"cursor": "kgEC"}, "invalid-cursor"),
    ],
)
async def test_what_makes_no_sense_is_refused(service: Service, path: str, params: Any, slug: str) -> None:
    answer = await service.of("pump-1", path, params=params)
    assert (answer.status in {400, 422}, answer.slug) == (True, slug)


async def test_a_format_that_there_is_not_is_refused(service: Service) -> None:
    answer = await service.of("pump-1", accept="text/csv")
    assert (answer.status, answer.slug) == (406, "not-acceptable")


@pytest.mark.parametrize("path", ["/telemetry", "/telemetry/buckets", "/latest", "/metrics"])
async def test_a_tenant_sees_its_own_and_only_with_the_scope(service: Service, path: str) -> None:
    params = {"every": "1d", "from": "1"} if path.endswith("buckets") else {}
    for claims, slug in (
        ({"tenant": "other"}, "foreign-tenant"),
        ({"scopes": "devices:read"}, "missing-scope"),
        ({"as_device": "pump-2"}, "foreign-device"),
    ):
        answer = await service.of("pump-1", path, params=params, **claims)
        assert (answer.status, answer.slug) == (403, slug)
    answer = await service.of("pump-1", path, params=params, tenant="*")
    assert answer.status == 200


async def test_a_device_is_erased_in_the_warehouse_and_in_the_sink(service: Service) -> None:
    await with_readings(service)
    await service.has(group(4, [payload(1)]))
    erased = await service.of("pump-1", method="DELETE")
    assert (erased.status, erased.body) == (200, {"records": 181})
    for path, version in (("/telemetry", "v1"), ("/telemetry", "v2"), ("/latest", "v2"), ("/metrics", "v2")):
        assert rows_of(await service.of("pump-1", path, version)) == []
    assert len(rows_of(await service.of("pump-2"))) == 2
    content = b"".join(path.read_bytes() for path in service.folder.glob("local.db*"))
    assert b"pump-2" in content
    await service.has(group(5, [payload(2)], device="pump-2"))
    assert len(rows_of(await service.of("pump-2"))) == 3
    denied = await service.of("pump-2", method="DELETE", scopes="telemetry:read")
    assert (denied.status, denied.slug) == (403, "missing-scope")


async def test_what_was_taken_is_there_after_a_restart_and_once(tmp_path: Path) -> None:
    async with data_service(tmp_path / "node") as service:
        await with_readings(service)
    async with data_service(tmp_path / "node") as service:
        await service.has(group(7, [reading(START + 500_000, temperature=1)]))
        assert await service.taken() == 1
        rows = rows_of(await service.of("pump-1", params={"limit": 1000}))
        assert len(rows) == 361
        assert await service.metric("feed_lag_seconds") == 0


@pytest.mark.parametrize("accept", [NDJSON, ARROW])
async def test_a_stream_that_cannot_be_finished_is_broken_off(
    service: Service, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    monkeypatch.setattr("services.data.api.values.NDJSON_PAGE", 50)
    monkeypatch.setattr("services.data.api.values.ARROW_PAGE", 50)
    await with_readings(service)
    reads, read = itertools.count(), Reader.read

    async def failing(self: Reader, step: Any) -> Any:
        if next(reads) == 3:
            raise Refused(503, "unavailable", "the disk is gone")
        return await read(self, step)

    monkeypatch.setattr(Reader, "read", failing)
    with pytest.raises(aiohttp.ClientPayloadError):
        await service.of("pump-1", accept=accept)


async def test_a_stream_that_is_read_too_slowly_is_broken_off(tmp_path: Path) -> None:
    async with data_service(tmp_path / "node", "data.stream_deadline_s=1") as service:
        readings = [reading(START + n, note="x" * 1024) for n in range(1000)]
        await service.has(*(group(number, readings) for number in range(1, 13)))
        path = "/v2/tenants/acme/devices/pump-1/telemetry"
        signed = service.signed()["X-Headworks-Identity"]
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {NDJSON}\r\nX-Headworks-Identity: {signed}\r\n\r\n"
        port = service.client.port
        assert port is not None
        incoming, outgoing = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        outgoing.write(head.encode())
        assert b"200" in await incoming.readline()
        await asyncio.sleep(2)  # what is too slow
        content = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while chunk := await incoming.read(1 << 16):
                    content += chunk
        outgoing.close()
        assert not content.endswith(b"0\r\n\r\n"), "it has no end"
        assert len(content) < 12_000_000
