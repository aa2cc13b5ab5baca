"""The data service as a process: behind a gateway and Kinesis, and killed again and again."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from runtime import clock
from tests.support.feeds import group, payload, write_local
from tests.support.gateway import Gateway, gateway
from tests.support.kinesis_servers import STREAM, client_of, kinesis_local, make_stream, moto
from tests.support.service_process import ServiceProcess, service_process

pytestmark = pytest.mark.end_to_end
READ = {"tenant": "acme", "scopes": "telemetry:read"}
DEVICES = [f"pump-{number}" for number in range(6)]


def values(service: ServiceProcess, device: str) -> list[float]:
    """Return all values of a device, page by page."""
    found: list[float] = []
    cursor = ""
    while True:
        path = f"/v2/tenants/acme/devices/{device}/telemetry?limit=1000&cursor={cursor}"
        status, body = service.get(path, **READ)
        assert status == 200, body
        found += [row["value"] for row in body["items"]]
        cursor = body["next"]
        if not cursor:
            return found


def send(node: Gateway, device: str, first: int, count: int, start_ms: int) -> None:
    readings = [{"ts": start_ms + n, "metrics": {"n": n}} for n in range(first, first + count)]
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/sensors"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(readings).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # of a gateway of ours
        assert response.status == 202


def put_again(client: Any) -> int:
    """Put the first record of each shard again, as a producer that was not answered does; return how many."""
    count = 0
    for shard in client.list_shards(StreamName=STREAM)["Shards"]:
        start = {"StreamName": STREAM, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator = client.get_shard_iterator(**start)["ShardIterator"]
        for record in client.get_records(ShardIterator=iterator, Limit=1)["Records"]:
            client.put_record(StreamName=STREAM, PartitionKey=record["PartitionKey"], Data=record["Data"])
            count += 1
    return count


def metric(service: ServiceProcess, name: str) -> float:
    text = service.get("/metrics")[1]
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"headworks_{name} "))


@pytest.mark.parametrize("double", [moto, kinesis_local])
def test_telemetry_goes_through_a_gateway_and_kinesis_into_the_warehouse_once(
    tmp_path: Path, double: Any
) -> None:
    with double(tmp_path) as port:
        client = client_of(port)
        make_stream(client, 3)
        where = f'stream = "{STREAM}"\nregion = "eu-central-1"\nendpoint = "http://127.0.0.1:{port}"\n'
        with (
            gateway(tmp_path, sink=f'kind = "kinesis"\n{where}') as node,
            service_process(tmp_path / "service", "data", f'[feed]\nsource = "kinesis"\n{where}') as service,
        ):
            start_ms = clock.unix_ms()
            for device in DEVICES:
                send(node, device, 0, 50, start_ms)
            service.until(lambda: all(len(values(service, device)) == 50 for device in DEVICES))
            service.kill()
            for device in DEVICES:
                send(node, device, 50, 30, start_ms)
            node.wait_until(node.delivered)
            again = put_again(client)
            service.start()
            service.until(lambda: all(len(values(service, device)) == 80 for device in DEVICES))
            service.until(lambda: metric(service, "feed_duplicates_total") >= again)
            for device in DEVICES:
                assert values(service, device) == [float(n) for n in range(80)]
            assert service.stop() == 0
            assert node.stop() == 0


def pour(path: Path, sent: dict[str, int], over: threading.Event) -> None:
    """Write records until it is over, as a gateway does."""
    chance, number, now_ms = random.Random(7), 0, clock.unix_ms()
    while not over.is_set():
        number += 1
        device = chance.choice(DEVICES)
        readings = [payload(sent[device] + n, n=sent[device] + n) for n in range(20)]
        write_local(path, group(number, readings, device=device, received_at_ms=now_ms))
        sent[device] += 20


@pytest.mark.crash
def test_ten_rounds_of_kill_9_under_load_lose_nothing_and_keep_nothing_twice(tmp_path: Path) -> None:
    folder, sent, over = tmp_path / "service", dict.fromkeys(DEVICES, 0), threading.Event()
    folder.mkdir()
    pouring = threading.Thread(target=pour, args=(folder / "local.db", sent, over))
    settings = f'[feed]\nfile = "{folder}/local.db"\npoll_s = 0.2\nrecords_max = 500\nduplicates_window = 1\n'
    chance = random.Random(3)
    with service_process(folder, "data", settings) as service:
        pouring.start()
        try:
            for _ in range(10):
                time.sleep(chance.uniform(0.0, 0.5))  # the moment of the kill
                service.kill()
                service.start()
        finally:
            over.set()
            pouring.join()
        for device in DEVICES:
            service.until(lambda name=device: len(values(service, name)) >= sent[name])  # type: ignore[misc]
            assert values(service, device) == [float(n) for n in range(sent[device])]
        assert service.stop() == 0
