"""What the gate of a running node does is counted at /metrics, and a node that lacks descriptors recovers."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect

pytestmark = pytest.mark.end_to_end
CONNACK = b"\x20\x02\x00\x00"
CAP = 4
WAIT_S = 20.0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run one worker with a short handshake deadline and few connections."""
    folder: Path = tmp_path_factory.mktemp("node")
    node = Gateway(folder, extra=f"[accept]\nconnections_max = {CAP}\n")
    text = node.config.read_text()
    node.config.write_text(text.replace("[tls]\n", "[tls]\nhandshake_deadline_s = 0.3\n"))
    node.start()
    yield node
    assert node.stop() == 0


def heard(peer: socket.socket) -> bytes:
    """Return what a peer hears; nothing when it is closed."""
    try:
        return peer.recv(100)
    except ConnectionResetError:
        return b""


def peer(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WAIT_S)


def failed(node: Gateway, reason: str) -> float:
    return node.metric(f'headworks_tls_handshakes_failed_total{{reason="{reason}"}}')


def refused(node: Gateway, reason: str) -> float:
    return node.metric(f'headworks_connections_refused_total{{reason="{reason}"}}')


def all_have_left(node: Gateway) -> bool:
    """Return whether every connection that was opened is closed."""
    totals = {"opened": 0.0, "closed": 0.0}
    for line in node.get("/metrics")[1].decode().splitlines():
        for name in totals:
            if line.startswith(f"headworks_connections_{name}_total{{"):
                totals[name] += float(line.rpartition(" ")[2])
    return totals["opened"] == totals["closed"]


@pytest.mark.parametrize("door", ["mqtts", "https"])
def test_a_silent_peer_is_closed_at_the_deadline_and_counted(narrow: Gateway, door: str) -> None:
    before = failed(narrow, "timeout")
    with peer(getattr(narrow, door)) as silent:
        assert heard(silent) == b""
    narrow.wait_until(lambda: failed(narrow, "timeout") == before + 1)


def test_peers_that_only_knock_are_counted_and_leave_one_line_each(narrow: Gateway) -> None:
    narrow.wait_until(lambda: all_have_left(narrow))
    before, lines = failed(narrow, "other"), len(narrow.log.read_text().splitlines())
    for _ in range(CAP):
        peer(narrow.mqtts).close()
    narrow.wait_until(lambda: failed(narrow, "other") == before + CAP)
    said = narrow.log.read_text().splitlines()[lines:]
    assert len(said) == CAP
    assert all('"event": "handshake_failed"' in line for line in said)


def test_a_peer_beyond_the_cap_is_closed_and_counted(narrow: Gateway) -> None:
    narrow.wait_until(lambda: all_have_left(narrow))
    before = refused(narrow, "connection_cap")
    with contextlib.ExitStack() as made:
        for number in range(CAP):
            one = made.enter_context(peer(narrow.mqtt))
            one.sendall(connect(client=f"cap-{number}"))
            assert heard(one) == CONNACK
        assert heard(made.enter_context(peer(narrow.mqtt))) == b""
        assert heard(made.enter_context(peer(narrow.http))) == b"", "the cap is one for all listeners"
        assert refused(narrow, "connection_cap") == before + 2
    narrow.wait_until(lambda: all_have_left(narrow))
    with peer(narrow.mqtt) as again:
        again.sendall(connect())
        assert heard(again) == CONNACK


@contextlib.contextmanager
def no_descriptor_left(pid: int) -> Iterator[None]:
    """Let a process open no file more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(descriptor.name) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_node_without_descriptors_keeps_who_is_there_and_serves_the_others_later(narrow: Gateway) -> None:
    narrow.wait_until(lambda: all_have_left(narrow))
    [worker] = narrow.status()["workers"]
    before = refused(narrow, "descriptors")
    with peer(narrow.mqtt) as one:
        one.sendall(connect(client="one", keep_alive=0))
        assert heard(one) == CONNACK
        with no_descriptor_left(worker["pid"]):
            other = peer(narrow.mqtt)
            other.sendall(connect(client="other"))
            narrow.wait_until(lambda: refused(narrow, "descriptors") >= before + 3)
            one.sendall(b"\xc0\x00")
            assert heard(one) == b"\xd0\x00", "a ping is answered all the while"
        with other:
            assert heard(other) == CONNACK
    assert narrow.status()["workers"][0]["pid"] == worker["pid"], "it is the same process"
