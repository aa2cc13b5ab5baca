"""The analytics service as a process: behind a gateway and Kinesis, and killed again and again."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from runtime import clock
from tests.support.feeds import group, write_local
from tests.support.gateway import Gateway, gateway
from tests.support.kinesis_servers import STREAM, client_of, kinesis_local, make_stream, moto
from tests.support.service_process import ServiceProcess, service_process

pytestmark = pytest.mark.end_to_end
READ = {"tenant": "acme", "scopes": "analytics:read"}
DEVICES = [f"pump-{number}" for number in range(6)]
Exact = dict[str, list[float]]


def windows_of(service: ServiceProcess, path: str) -> list[Any]:
    status, body = service.get(f"/v1/tenants/acme/{path}", **READ)
    return list(body["items"]) if status == 200 else []


def counted(service: ServiceProcess, path: str) -> int:
    return sum(window["count"] for window in windows_of(service, path))


def send(node: Gateway, device: str, readings: list[dict[str, Any]]) -> None:
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/sensors"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(readings).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # of a gateway of ours
        assert response.status == 202


@pytest.mark.parametrize("double", [moto, kinesis_local])
def test_telemetry_goes_through_a_gateway_and_kinesis_into_roll_ups(tmp_path: Path, double: Any) -> None:
    with double(tmp_path) as port:
        make_stream(client_of(port), 3)
        where = f'stream = "{STREAM}"\nregion = "eu-central-1"\nendpoint = "http://127.0.0.1:{port}"\n'
        settings = f'[feed]\nsource = "kinesis"\n{where}'
        with (
            gateway(tmp_path, sink=f'kind = "kinesis"\n{where}') as node,
            service_process(tmp_path / "service", "analytics", settings) as service,
        ):
            now_ms = clock.unix_ms()
            for number, device in enumerate(DEVICES):
                readings = [
                    {"ts": now_ms - n * 1000, "metrics": {"flow": float(number * 100 + n)}} for n in range(50)
                ]
                send(node, device, readings)
            service.until(lambda: counted(service, "rollups?metric=flow&window=1d") == 300)
            service.kill()
            send(node, DEVICES[0], [{"ts": now_ms, "metrics": {"flow": 1000.0}}])
            service.start()
            service.until(lambda: counted(service, "rollups?metric=flow&window=1d") == 301)
            for number, device in enumerate(DEVICES):
                found = windows_of(service, f"devices/{device}/rollups?metric=flow")
                exact = [float(number * 100 + n) for n in range(50)] + ([1000.0] if number == 0 else [])
                assert sum(window["count"] for window in found) == len(exact)
                assert sum(window["statistics"]["sum"] for window in found) == sum(exact)
                assert max(window["statistics"]["max"] for window in found) == max(exact)
                assert min(window["statistics"]["min"] for window in found) == min(exact)
            assert service.stop() == 0
            assert node.stop() == 0


def pour(path: Path, start_ms: int, exact: Exact, over: threading.Event) -> None:
    """Write records until it is over, as a gateway does."""
    chance, number = random.Random(7), 0
    while not over.is_set():
        number += 1
        device = chance.choice(DEVICES)
        ts_ms = start_ms + chance.randrange(1_800_000)
        value = float(chance.randrange(1000))
        text = json.dumps({"ts": ts_ms, "metrics": {"flow": value}}).encode()
        sent = group(number, [text] * 20, tenant="acme", device=device, received_at_ms=start_ms + 1_800_000)
        write_local(path, sent)
        exact[f"{device}/{ts_ms // 60_000 * 60}"] += [value] * 20


@pytest.mark.crash
def test_ten_rounds_of_kill_9_under_load_change_no_roll_up(tmp_path: Path) -> None:
    folder, exact, over = tmp_path / "service", defaultdict[str, list[float]](list), threading.Event()
    folder.mkdir()
    start_ms = clock.unix_ms() - 3_600_000
    pouring = threading.Thread(target=pour, args=(folder / "local.db", start_ms, exact, over))
    settings = f'[feed]\nfile = "{folder}/local.db"\npoll_s = 0.2\nrecords_max = 50\n'
    chance = random.Random(3)
    with service_process(folder, "analytics", settings) as service:
        pouring.start()
        try:
            for _ in range(10):
                time.sleep(chance.uniform(0.0, 0.5))  # the moment of the kill
                service.kill()
                service.start()
        finally:
            over.set()
            pouring.join()
        records = sum(map(len, exact.values()))
        service.until(lambda: counted(service, "rollups?metric=flow&window=1d") == records)
        found = {}
        for device in DEVICES:
            for window in windows_of(service, f"devices/{device}/rollups?metric=flow&limit=1000"):
                found[f"{device}/{window['start'] // 1000}"] = window
        assert set(found) == set(exact)
        for where, values in exact.items():
            statistics = found[where]["statistics"]
            assert (found[where]["count"], statistics["sum"]) == (len(values), sum(values))
            assert (statistics["min"], statistics["max"]) == (min(values), max(values))
        assert service.stop() == 0
