"""A device has no more connections than its plan allows, over workers and protocols, and after a crash."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_clients import client_tls
from tests.end_to_end.test_tls_sessions import worker_of, workers
from tests.support.gateway import Gateway, gateway
from tests.support.mqtt_packets import connect

pytestmark = pytest.mark.end_to_end
CAP = 3
PLAN = f"[limits.default]\ndevice_connections_max = {CAP}\n"
ACCEPTED_3 = b"\x20\x02\x00\x00"
UNAVAILABLE_3 = b"\x20\x02\x00\x03"
QUOTA_EXCEEDED_5 = 0x97
DISCONNECT = b"\xe0\x00"
BODY = b'{"ts": 1764000000000, "metrics": {"v": 1.5}}'
POST = b"POST /v1/telemetry/s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
RESET = b"\x01\0\0\0\0\0\0\0"
"""SO_LINGER of no time: close sends RST."""


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("node")
    with gateway(folder, workers=2, extra=PLAN) as node:
        yield node


class Device:
    """One certificate, and the connections it has made."""

    def __init__(self, node: Gateway, name: str) -> None:
        self.node = node
        self._context: ssl.SSLContext = client_tls(node, node.ca.device("acme", name))
        self._open: list[ssl.SSLSocket] = []
        self._made = 0

    def to(self, port: int, worker: int | None = None) -> ssl.SSLSocket:
        """Connect to a worker, or to any. The kernel chooses, so try until it is the right one."""
        for _ in range(200):
            plain = socket.create_connection(("127.0.0.1", port), 10)
            secure = self._context.wrap_socket(plain, server_hostname="localhost")
            if worker is None or worker_of(self.node, secure, port) == worker:
                self._open.append(secure)
                return secure
            secure.close()
        raise AssertionError(f"worker {worker} is never chosen")

    def mqtt(self, worker: int | None = None, version: int = 4) -> tuple[ssl.SSLSocket, bytes]:
        """Connect under a client id of its own; return the connection and its CONNACK."""
        self._made += 1
        secure = self.to(self.node.mqtts, worker)
        secure.sendall(connect(client=f"client-{self._made}", version=version))
        return secure, secure.recv(100)

    def http(self, worker: int | None = None) -> tuple[ssl.SSLSocket, bytes]:
        """Post on a new connection, which stays; return it and the status line."""
        secure = self.to(self.node.https, worker)
        return secure, self.post(secure)

    def post(self, secure: ssl.SSLSocket) -> bytes:
        secure.sendall(POST)
        return secure.recv(10_000).partition(b"\r\n")[0]

    def close(self) -> None:
        for secure in self._open:
            secure.close()


@contextlib.contextmanager
def device(node: Gateway, name: str) -> Iterator[Device]:
    one = Device(node, name)
    try:
        yield one
    finally:
        one.close()


def refusals(node: Gateway) -> float:
    return node.metric('headworks_connections_refused_total{reason="device_connections"}')


def within(deadline_s: float, attempt: Callable[[], bool]) -> bool:
    """Try until it succeeds: a connection is over only when the node has seen it close."""
    until_s = time.monotonic() + deadline_s
    while time.monotonic() < until_s:
        if attempt():
            return True
        time.sleep(0.05)
    return False


def test_a_device_has_no_more_mqtt_connections_than_its_plan_allows_on_all_workers_together(
    capped: Gateway,
) -> None:
    one, other = sorted(workers(capped))
    with device(capped, "mqtt") as mine:
        for worker in (one, one, other):
            assert mine.mqtt(worker)[1] == ACCEPTED_3
        before = refusals(capped)
        for worker in (one, other):
            assert mine.mqtt(worker)[1] == UNAVAILABLE_3
            answer = mine.mqtt(worker, version=5)[1]
            assert (answer[0], answer[3]) == (0x20, QUOTA_EXCEEDED_5)
        assert refusals(capped) == before + 4
        with device(capped, "neighbour") as neighbour:
            assert neighbour.mqtt()[1] == ACCEPTED_3, "another device of the tenant is another matter"


def test_a_device_has_no_more_http_connections_than_its_plan_allows_on_all_workers_together(
    capped: Gateway,
) -> None:
    one, other = sorted(workers(capped))
    with device(capped, "http") as mine:
        kept = [mine.http(worker) for worker in (one, other, other)]
        assert [status for _, status in kept] == [b"HTTP/1.1 202 Accepted"] * CAP
        before = refusals(capped)
        over, status = mine.http(one)
        assert status == b"HTTP/1.1 429 Too Many Requests"
        assert mine.http(other)[1] == b"HTTP/1.1 429 Too Many Requests"
        assert refusals(capped) == before + 2
        assert mine.post(kept[0][0]) == b"HTTP/1.1 202 Accepted", "who is in stays in"
        kept[1][0].close()
        assert within(10, lambda: mine.post(over) == b"HTTP/1.1 202 Accepted")


def test_connections_of_every_protocol_count_to_one_cap(capped: Gateway) -> None:
    one, other = sorted(workers(capped))
    with device(capped, "both") as mine:
        assert mine.mqtt(one)[1] == ACCEPTED_3
        assert mine.mqtt(other)[1] == ACCEPTED_3
        assert mine.http(one)[1] == b"HTTP/1.1 202 Accepted"
        assert mine.mqtt(other)[1] == UNAVAILABLE_3
        assert mine.http(other)[1] == b"HTTP/1.1 429 Too Many Requests"


@pytest.mark.parametrize("how", ["disconnect", "close", "reset"])
def test_a_connection_that_ends_makes_room_for_one_and_not_for_two(capped: Gateway, how: str) -> None:
    with device(capped, how) as mine:
        ending, *_ = [mine.mqtt()[0] for _ in range(CAP)]
        assert mine.mqtt()[1] == UNAVAILABLE_3
        if how == "disconnect":
            ending.sendall(DISCONNECT)
        elif how == "reset":
            ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        ending.close()
        assert within(10, lambda: mine.mqtt()[1] == ACCEPTED_3)
        assert mine.mqtt()[1] == UNAVAILABLE_3


def test_a_refused_connection_leaves_no_trace_in_the_count(capped: Gateway) -> None:
    with device(capped, "persistent") as mine:
        kept = [mine.mqtt()[0] for _ in range(CAP)]
        for _ in range(20):
            assert mine.mqtt()[1] == UNAVAILABLE_3
        for secure in kept:
            secure.close()
        for _ in range(CAP):
            assert within(10, lambda: mine.mqtt()[1] == ACCEPTED_3)
        assert mine.mqtt()[1] == UNAVAILABLE_3


def test_the_connections_of_a_killed_worker_are_counted_out(capped: Gateway) -> None:
    number, pid = next((entry["worker"], int(entry["pid"])) for entry in capped.status()["workers"])
    [survivor] = workers(capped) - {pid}
    with device(capped, "orphan") as mine:
        assert mine.mqtt(pid)[1] == ACCEPTED_3
        assert mine.http(pid)[1] == b"HTTP/1.1 202 Accepted"
        assert mine.mqtt(survivor)[1] == ACCEPTED_3
        assert mine.mqtt(survivor)[1] == UNAVAILABLE_3
        capped.kill_worker(number)
        capped.wait_until(lambda: not workers(capped) & {pid, 0} and capped.get("/readyz")[0] == 200)
        [successor] = workers(capped) - {survivor}
        assert mine.mqtt(survivor)[1] == ACCEPTED_3
        assert mine.http(successor)[1] == b"HTTP/1.1 202 Accepted"
        assert mine.mqtt(successor)[1] == UNAVAILABLE_3, "the survivor's still count"
        assert mine.mqtt(survivor)[1] == UNAVAILABLE_3
