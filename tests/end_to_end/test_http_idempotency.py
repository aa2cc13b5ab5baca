"""`Idempotency-Key` on the wire: no 202 for what is not stored, and nothing is stored twice."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.support.gateway import Gateway, gateway

pytestmark = pytest.mark.end_to_end


def post(url: str, key: str, context: ssl.SSLContext | None = None, **extra: Any) -> tuple[int, Any]:
    """Send one measurement with a key, on a connection of its own; return the status and the answer."""
    body = json.dumps(telemetry(**extra)).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310  # http(s)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as response:  # noqa: S310  # the same
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def url_of(node: Gateway, device: str, stream: str) -> str:
    return f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/{stream}"


def test_a_key_used_for_another_device_is_refused_and_not_acknowledged(node: Gateway) -> None:
    stream = new_stream()
    assert post(url_of(node, "a", stream), stream)[0] == 202
    status, problem = post(url_of(node, "b", stream), stream)
    assert (status, problem["type"]) == (422, "urn:headworks:problem:idempotency-key-reused")
    assert [device for _, device, _ in found(node, stream, 1)] == ["a"]


def test_a_gateway_and_a_device_of_one_name_never_share_a_key(node: Gateway) -> None:
    stream = new_stream()
    ids = []
    for kind in ("gateway", "device"):
        context = client_tls(node, node.ca.device("acme", "twin", kind=kind))
        status, answer = post(f"https://localhost:{node.https}/v1/telemetry/{stream}", stream, context)
        assert status == 202
        ids += answer["ids"]
    assert len(set(ids)) == 2
    found(node, stream, 2)


@pytest.mark.parametrize("key", ["", "\xff", "x" * 256], ids=["empty", "not UTF-8", "long"])
def test_a_key_that_is_none_is_refused(node: Gateway, key: str) -> None:
    status, problem = post(url_of(node, "a", new_stream()), key)
    assert (status, problem["type"]) == (400, "urn:headworks:problem:bad-idempotency-key")


@contextlib.contextmanager
def disk_that_hangs(spool: Path) -> Iterator[None]:
    """Let no commit to this spool end: SQLite waits for whoever else is writing."""
    connection = sqlite3.connect(spool, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_a_claim_of_a_killed_worker_is_under_way_until_its_successor_is_ready(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as node, contextlib.ExitStack() as locks:
        spools = [node.data_dir / f"worker-{number}" / "spool.db" for number in range(2)]
        held = [locks.enter_context(contextlib.ExitStack()) for _ in spools]
        for lock, spool in zip(held, spools, strict=True):
            lock.enter_context(disk_that_hangs(spool))
        url, stream = url_of(node, "d", "s"), new_stream()

        def forgotten() -> None:
            with contextlib.suppress(OSError):
                post(url, stream)

        first = threading.Thread(target=forgotten)
        first.start()

        def connections() -> list[int]:
            return [worker["connections"] for worker in node.status()["workers"]]

        node.wait_until(lambda: sum(connections()) == 1)
        owner = connections().index(1)
        node.kill_worker(owner)
        first.join()
        held[1 - owner].close()
        status, problem = post(url, stream)
        assert (status, problem["type"]) == (409, "urn:headworks:problem:idempotency-key-under-way")
        held[owner].close()
        node.wait_until(lambda: node.get("/readyz")[0] == 200)
        assert post(url, stream)[0] == 202, "the first was never stored"
        found(node, "s", 1)


def test_a_request_that_the_disk_does_not_settle_in_time_is_told_so(hasty: Gateway) -> None:
    stream = new_stream()
    url = url_of(hasty, "d", stream)
    unsettled = hasty.metric("headworks_requests_unsettled_total")
    with disk_that_hangs(hasty.data_dir / "worker-0" / "spool.db"):
        status, problem = post(url, stream)
        assert (status, problem["type"]) == (503, "urn:headworks:problem:unsettled")
        status, problem = post(url, stream)
        assert (status, problem["type"]) == (409, "urn:headworks:problem:idempotency-key-under-way")
    found(hasty, stream, 1)  # it became durable after all
    status, answer = post(url, stream)
    assert (status, answer["accepted"]) == (202, 1)
    found(hasty, stream, 1)
    assert hasty.metric("headworks_requests_unsettled_total") == unsettled + 1
