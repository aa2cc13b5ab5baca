"""Limits on the wire: a list counts as its records on every protocol, and what is refused is not free."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.end_to_end.test_clients import new_stream, telemetry
from tests.end_to_end.test_refusals import post, run
from tests.support.gateway import Gateway, gateway
from tests.support.mqtt_packets import connect, publish

pytestmark = pytest.mark.end_to_end

PLAN = """
[limits.default]
device_messages_per_s = 100
device_bytes_per_s = 1000000
burst_s = 0.5
over_limit = "refuse"
[limits.pausing]
device_messages_per_s = 100
burst_s = 0.5
[spool]
refused_kept_bytes_max = 1000
"""
ACCEPTED, QUOTA_EXCEEDED = 0x00, 0x97


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("strict")
    with gateway(folder, extra=PLAN) as started:
        yield started


def list_of(records: int) -> bytes:
    return msgspec.json.encode([telemetry()] * records)


def url_of(node: Gateway, device: str, stream: str = "s") -> str:
    return f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/{stream}"


def reasons_of(said: bytes, count: int) -> list[int] | None:
    """Return the reason codes of `count` PUBACKs, or None while some are missing."""
    reasons = []
    while said:
        if len(said) < 2 or len(said) < 2 + said[1]:
            return None
        assert said[0] == 0x40
        reasons.append(said[4] if said[1] > 2 else ACCEPTED)
        said = said[2 + said[1] :]
    return reasons if len(reasons) == count else None


async def test_a_list_larger_than_the_burst_is_taken_by_who_waits_as_long_as_told(strict: Gateway) -> None:
    headers = {"Content-Type": "application/json"}
    url = url_of(strict, "patient")
    assert (await post(url, data=list_of(250), headers=headers))[0] == 202
    status, answered = await post(url, data=list_of(250), headers=headers)
    assert status == 429
    wait_s = int(answered["Retry-After"])
    assert 1 <= wait_s <= 3, "2.5 s after the first"
    await asyncio.sleep(wait_s)
    assert (await post(url, data=list_of(250), headers=headers))[0] == 202


async def test_a_plan_that_pauses_holds_over_http(strict: Gateway) -> None:
    await asyncio.to_thread(run, strict, "tenants", "add", "slow", "--plan", "pausing")
    await asyncio.sleep(2)
    headers, url = {"Content-Type": "application/json"}, url_of(strict, "d").replace("acme", "slow")
    assert (await post(url, data=list_of(1000), headers=headers))[0] == 202
    status, answered = await post(url, data=list_of(1), headers=headers)
    assert status == 429
    assert 5 <= int(answered["Retry-After"]) <= 10


def test_lists_do_not_go_around_the_limit_over_mqtt(strict: Gateway) -> None:
    lists = 10
    body = list_of(1000)
    before = strict.status()["accepted"]
    with socket.create_connection(("127.0.0.1", strict.mqtt), 5) as sock:
        sock.sendall(connect(version=5))
        assert sock.recv(100)[:1] == b"\x20"
        began_s = time.monotonic()
        for number in range(1, lists + 1):
            sock.sendall(publish(topic=b"dt/acme/flood/s", payload=body, packet_id=number, properties=b""))
        said = b""
        while (reasons := reasons_of(said, lists)) is None:
            said += sock.recv(4096)
    assert reasons[0] == ACCEPTED
    accepted = reasons.count(ACCEPTED)
    assert accepted <= 1 + (time.monotonic() - began_s) / 10, "each has to be paid for ten seconds"
    assert set(reasons[1:]) <= {ACCEPTED, QUOTA_EXCEEDED}
    assert strict.status()["accepted"] - before == accepted * 1000


async def test_what_is_refused_for_its_content_fills_no_disk(strict: Gateway) -> None:
    stream = new_stream()
    body = gzip.compress(b"x" * 8_000_000)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answers = [await post(url_of(strict, "bomb", stream), data=body, headers=headers) for _ in range(5)]
    assert answers[0][0] == 413
    assert {status for status, _ in answers[1:]} == {429}
    assert max(int(answered["Retry-After"]) for _, answered in answers[1:]) > 1

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "commands.cli", "deadletters", *arguments]
        return subprocess.run(
            [*line, "--data-dir", str(strict.data_dir)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    listed = await asyncio.to_thread(command, "list", "--json")
    [letter] = [each for each in json.loads(listed.stdout) if each["stream"] == stream]
    assert letter["bytes"] == 1000
    assert letter["detail"].endswith("; only the first 1000 of 8000000 bytes are kept")
    replayed = await asyncio.to_thread(command, "replay", letter["name"])
    assert replayed.returncode == 1
    assert "1 cannot be replayed" in replayed.stderr
    await asyncio.to_thread(
        strict.wait_until, lambda: strict.metric('headworks_dead_letters_bytes{worker="0"}') >= 1000
    )
