"""Peers come in through real sockets: in time, at the rate, while there is room; the others wait or go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ParamSpec, cast

import pytest
import uvloop

from ingest.acceptor import GONE, OUT_OF_DESCRIPTORS, Acceptor, listen
from ingest.gate import Gate
from ingest.mqtt.sockets import Sockets, SocketWire
from ingest.pki import DevelopmentCa
from ingest.tls.handshakes import Handshakes
from runtime import clock
from runtime.tls.failure import HandshakeFailure, failure_of
from runtime.tls.material import TlsFiles, load

DEADLINE_S = 20.0
"""For what has to happen; on a quiet machine all of it takes milliseconds."""
P = ParamSpec("P")
both_ways = pytest.mark.parametrize("handed", [False, True], ids=["transport", "socket"])


def on_a_workers_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the event loop that workers have."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


class AskedGate(Gate):
    """A gate that notes how often it was asked, and the most handshakes it saw."""

    def __init__(self, *, rate_per_s: float = 1e5, connections_max: int = 1000) -> None:
        self.began_s = clock.monotonic_s()
        self.asked = self.handshakes_seen = 0
        super().__init__(
            rate_per_s=rate_per_s, lag_max_s=0.5, connections_max=connections_max, now_s=self.began_s
        )

    def admit(self, now_s: float, room: int) -> tuple[int, float]:
        self.asked += 1
        return super().admit(now_s, room)

    def accepted(self, now_s: float, connections: int) -> bool:
        accepted = super().accepted(now_s, connections)
        self.handshakes_seen = max(self.handshakes_seen, self.handshakes)
        return accepted


class Door:
    """A running acceptor, and what it did."""

    def __init__(self, gate: AskedGate) -> None:
        self.gate = gate
        self.acceptor: Acceptor
        self.task: asyncio.Task[None]
        self.port = 0
        self.open: list[Connection | Handed] = []
        self.opened_s: list[float] = []
        self.refused: list[tuple[str, str]] = []
        self.failed: list[HandshakeFailure] = []
        self.accepted = 0


class Connection(asyncio.Protocol):
    """Greets its peer."""

    transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._door.open.append(self)
        self._door.opened_s.append(clock.monotonic_s())
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._door.open.remove(self)

    def abort(self) -> None:
        self.transport.abort()


class Handed:
    """Does the same with a socket that it is given."""

    def __init__(self, door: Door, wire: SocketWire) -> None:
        self._door = door
        self._wire = wire
        door.open.append(self)
        door.opened_s.append(clock.monotonic_s())
        wire.write(b"hello")

    def received(self, data: bytes) -> None:
        raise AssertionError(data)

    def peer_left(self) -> None:
        return

    def ended(self) -> None:
        self._door.open.remove(self)

    def pause_writing(self) -> None:
        raise AssertionError

    def resume_writing(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        self._wire.abort()


@contextlib.asynccontextmanager
async def running(
    sock: Any = None,
    *,
    gate: AskedGate | None = None,
    tls: ssl.SSLContext | None = None,
    sockets: Callable[[socket.socket, str], None] | None = None,
    handed: bool = False,
    handshake_deadline_s: float = DEADLINE_S,
    handshakes_max: int = 1000,
) -> AsyncIterator[Door]:
    """Run an acceptor; `handed` lets it hand over sockets, which are then read as a worker reads them."""
    door = Door(gate or AskedGate())
    sock = sock or listen("127.0.0.1", 0, backlog=100)
    door.port = sock.getsockname()[1]

    def context() -> ssl.SSLContext:
        assert tls is not None
        door.accepted += 1
        return tls

    driver = Sockets(asyncio.get_running_loop(), linger_s=0.0)
    if handed:
        sockets = lambda sock, name: driver.add(sock, lambda wire, _: Handed(door, wire), name)  # noqa: E731
    handshakes = Handshakes(asyncio.get_running_loop(), deadline_s=handshake_deadline_s)
    door.acceptor = Acceptor(
        sock,
        protocol=lambda: Connection(door),
        sockets=sockets,
        tls=None if tls is None else context,
        handshakes=handshakes,
        handshake_deadline_s=handshake_deadline_s,
        handshakes_max=handshakes_max,
        gate=door.gate,
        connections=lambda: len(door.open),
        refused=lambda reason, peer: door.refused.append((reason, peer)),
        failed=lambda error, _: door.failed.append(failure_of(error)),
    )
    async with asyncio.TaskGroup() as tasks:
        door.task = tasks.create_task(door.acceptor.run())
        yield door
        door.task.cancel()
    handshakes.close()
    for connection in list(door.open):
        connection.abort()
    await until(lambda: not door.open)
    driver.close()


class Files:
    """A CA, a server's context and a device's."""

    def __init__(self, folder: Path) -> None:
        ca = DevelopmentCa.create(folder)
        server, device = ca.server(["localhost"]), ca.device("t", "d")
        files = TlsFiles(
            certificate=server.certificate, key=server.key, client_ca=ca.ca_path, crl=ca.crl_path
        )
        material = load(files, node_secret=b"s" * 32, now_s=clock.unix_s())
        self.server = material.contexts[True, "mqtt"]
        self.device = ssl.create_default_context(cafile=str(ca.ca_path))
        self.device.load_cert_chain(device.certificate, device.key)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def peers() -> Iterator[Callable[[int], socket.socket]]:
    """Return what connects to a port. The kernel answers, so that it works before anybody accepts."""
    made: list[socket.socket] = []

    def connect(port: int) -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
        made[-1].setblocking(False)
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


Peers = Callable[[int], socket.socket]


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not done():
            await asyncio.sleep(0.002)


async def heard(peer: socket.socket) -> bytes | None:
    """Return what a peer hears, or None when it is closed."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await asyncio.get_running_loop().sock_recv(peer, 100) or None
        except ConnectionResetError:
            return None


@both_ways
@on_a_workers_loop
async def test_a_peer_that_says_nothing_is_closed_at_the_handshake_deadline(
    files: Files, peers: Peers, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed, handshake_deadline_s=0.2) as door:
        began_s = clock.monotonic_s()
        assert await heard(peers(door.port)) is None
        assert clock.monotonic_s() - began_s >= 0.19
        await until(lambda: door.gate.handshakes == 0)
        assert door.failed == [HandshakeFailure.TIMEOUT]
        assert not door.open


@both_ways
@on_a_workers_loop
async def test_a_peer_that_speaks_slowly_meets_the_same_deadline(
    files: Files, peers: Peers, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed, handshake_deadline_s=0.2) as door:
        peer = peers(door.port)
        record = b"\x16\x03\x01\x02\x00" + bytes(0x200)
        with contextlib.suppress(OSError):
            for position in range(len(record)):
                peer.send(record[position : position + 1])
                await asyncio.sleep(0.01)
                if door.failed:
                    break
        assert door.failed == [HandshakeFailure.TIMEOUT]
        assert await heard(peer) is None


@both_ways
@on_a_workers_loop
async def test_a_peer_that_is_in_time_stays_beyond_the_deadline(
    files: Files, peers: Peers, *, handed: bool
) -> None:
    deadline_s = 1.0
    async with running(tls=files.server, handed=handed, handshake_deadline_s=deadline_s) as door:
        reader, writer = await asyncio.open_connection("localhost", door.port, ssl=files.device)
        assert await reader.readexactly(5) == b"hello"
        await heard(peers(door.port))  # a silent one, which began later, is over now
        assert door.failed == [HandshakeFailure.TIMEOUT]
        assert len(door.open) == 1
        writer.close()
        await until(lambda: not door.open)


@both_ways
@on_a_workers_loop
async def test_a_peer_that_hangs_up_in_its_handshake_is_counted_and_not_reported_to_the_loop(
    files: Files, peers: Peers, caplog: pytest.LogCaptureFixture, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed) as door:
        peers(door.port).close()
        reset = peers(door.port)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        reset.close()
        closes_notify = peers(door.port)
        closes_notify.send(b"\x15\x03\x01\x00\x02\x01\x00")
        await until(lambda: len(door.failed) == 3)
        assert set(door.failed) == {HandshakeFailure.OTHER}
        assert door.gate.handshakes == 0
        assert not caplog.records
        error = ValueError("what should not be possible")
        asyncio.get_running_loop().call_exception_handler({"message": "odd", "exception": error})
        assert [record.message for record in caplog.records] == ["odd"]


@on_a_workers_loop
async def test_a_handler_of_errors_that_is_there_stays(peers: Peers) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with running() as door:
        assert await heard(peers(door.port)) == b"hello"
        asyncio.get_running_loop().call_exception_handler({"message": "odd"})
    assert told == [{"message": "odd"}]


@both_ways
@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", b"\x80\x2e\x01" + bytes(60)],
)
@on_a_workers_loop
async def test_a_peer_that_does_not_speak_tls_is_closed_at_once(
    files: Files, peers: Peers, said: bytes, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed) as door:
        peer = peers(door.port)
        peer.send(said)
        while await heard(peer):
            pass  # an alert says why
        await until(lambda: len(door.failed) == 1)
        assert not door.open


@both_ways
@on_a_workers_loop
async def test_peers_beyond_the_most_handshakes_wait_in_the_backlog(
    files: Files, peers: Peers, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed, handshakes_max=2) as door:
        silent = [peers(door.port) for _ in range(5)]
        connecting = asyncio.ensure_future(asyncio.open_connection("localhost", door.port, ssl=files.device))
        for ended in range(4):
            await until(lambda ended=ended: door.accepted == ended + 2)  # type: ignore[misc]
            asked = door.gate.asked
            await until(lambda asked=asked: door.gate.asked >= asked + 3)  # type: ignore[misc]
            assert door.accepted == ended + 2, "it was asked whether there is room, and there was none"
            silent[ended].close()
        reader, writer = await connecting
        assert await reader.readexactly(5) == b"hello"
        assert door.gate.handshakes_seen == 2
        writer.close()
        await until(lambda: not door.open)


@on_a_workers_loop
async def test_peers_are_accepted_at_the_rate_after_one_burst(peers: Peers) -> None:
    rate_per_s, burst = 40.0, 10
    async with running(gate=AskedGate(rate_per_s=rate_per_s)) as door:
        waiting = [peers(door.port) for _ in range(burst + 10)]
        for peer in waiting:
            assert await heard(peer) == b"hello"
        for position, opened_s in enumerate(door.opened_s):
            assert opened_s - door.gate.began_s >= (position + 1 - burst) / rate_per_s - 0.005
    assert not door.refused, "nobody is turned away for coming too soon"


@on_a_workers_loop
async def test_a_loop_that_is_late_accepts_nobody_until_it_has_caught_up(peers: Peers) -> None:
    gate = AskedGate()
    for _ in range(10):
        gate.observe_lag(2.0)
    async with running(gate=gate) as door:
        peer = peers(door.port)
        await until(lambda: gate.asked >= 3)
        assert not door.opened_s
        for _ in range(10):
            gate.observe_lag(0.0)
        assert await heard(peer) == b"hello"


@on_a_workers_loop
async def test_a_peer_beyond_the_cap_is_closed_and_counted(peers: Peers) -> None:
    async with running(gate=AskedGate(connections_max=2)) as door:
        first, second = peers(door.port), peers(door.port)
        await until(lambda: len(door.open) == 2 and not door.gate.handshakes)
        third = peers(door.port)
        assert await heard(third) is None
        assert door.refused == [("connection_cap", f"127.0.0.1:{third.getsockname()[1]}")]
        first.close()
        await until(lambda: len(door.open) == 1)
        assert await heard(peers(door.port)) == b"hello"
        assert await heard(second) == b"hello"


@on_a_workers_loop
async def test_handshakes_of_one_listener_count_to_the_cap_of_another(files: Files, peers: Peers) -> None:
    gate = AskedGate(connections_max=1)
    async with running(gate=gate, tls=files.server) as secure, running(gate=gate) as plain:
        silent = peers(secure.port)
        await until(lambda: gate.handshakes == 1)
        assert await heard(peers(plain.port)) is None
        assert [reason for reason, _ in plain.refused] == ["connection_cap"]
        silent.close()
        await until(lambda: gate.handshakes == 0)
        assert await heard(peers(plain.port)) == b"hello"


@on_a_workers_loop
async def test_a_socket_that_is_handed_over_is_no_handshake(peers: Peers) -> None:
    taken: list[tuple[socket.socket, str]] = []
    async with running(gate=AskedGate(connections_max=1), sockets=lambda *peer: taken.append(peer)) as door:
        for count in range(1, 4):
            peer = peers(door.port)
            await until(lambda count=count: len(taken) == count)  # type: ignore[misc]
            assert taken[-1][1] == f"127.0.0.1:{peer.getsockname()[1]}"
            assert not taken[-1][0].getblocking()
            assert taken[-1][0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert door.gate.handshakes == 0
        assert not door.refused
    for sock, _ in taken:
        sock.close()


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no file more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@on_a_workers_loop
async def test_without_descriptors_peers_wait_and_are_served_when_there_are_some(peers: Peers) -> None:
    async with running() as door:
        assert await heard(peers(door.port)) == b"hello"
        waiting = [peers(door.port) for _ in range(3)]
        with no_descriptor_left():
            await until(lambda: len(door.refused) >= 2)
            assert len(door.open) == 1
        assert set(door.refused) == {("descriptors", "")}
        for peer in waiting:
            assert await heard(peer) == b"hello"


class Failing:
    """A listening socket whose `accept` fails with the given errors first."""

    def __init__(self, errors: list[int]) -> None:
        self._sock = listen("127.0.0.1", 0, backlog=100)
        self.errors = errors
        self.fileno, self.close, self.getsockname = (
            self._sock.fileno,
            self._sock.close,
            self._sock.getsockname,
        )

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()


@pytest.mark.parametrize("number", sorted(OUT_OF_DESCRIPTORS), ids=lambda number: errno.errorcode[number])
@on_a_workers_loop
async def test_every_shortage_of_the_system_pauses_and_is_counted(peers: Peers, number: int) -> None:
    async with running(Failing([number])) as door:
        assert await heard(peers(door.port)) == b"hello"
        assert door.refused == [("descriptors", "")]
        assert door.opened_s[0] - door.gate.began_s >= 0.095


@pytest.mark.parametrize("number", sorted(GONE), ids=lambda number: errno.errorcode[number])
@on_a_workers_loop
async def test_what_is_wrong_with_one_peer_does_not_keep_the_next_waiting(
    peers: Peers, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    async with running(Failing([number, number, errno.EINTR, number])) as door:
        assert await heard(peers(door.port)) == b"hello"
        assert not door.refused
        assert not caplog.records


@on_a_workers_loop
async def test_an_error_that_nobody_foresaw_is_reported_and_not_the_end(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Failing([errno.EIO])) as door:
        assert await heard(peers(door.port)) == b"hello"
        assert os.strerror(errno.EIO) in caplog.text


@on_a_workers_loop
async def test_after_close_nobody_is_accepted_and_who_is_open_stays(peers: Peers) -> None:
    async with running() as door:
        first = peers(door.port)
        assert await heard(first) == b"hello"
        door.acceptor.close()
        door.acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            peers(door.port)
        assert len(door.open) == 1
        with pytest.raises(BlockingIOError):
            first.recv(1)


@on_a_workers_loop
async def test_close_during_a_pause_is_for_good(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    gate = AskedGate()
    gate.observe_lag(1000.0)
    async with running(gate=gate) as door:
        peer = peers(door.port)
        await until(lambda: gate.asked == 1)
        door.acceptor.close()
        gate.lag_s = 0.0
        assert await heard(peer) is None, "the backlog is reset, so that it goes elsewhere at once"
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.06, later.set)  # after the pause, by the same clock
        await later.wait()
        assert gate.asked == 1
        assert not caplog.records


@both_ways
@on_a_workers_loop
async def test_who_is_in_the_handshake_at_the_end_is_closed(
    files: Files, peers: Peers, *, handed: bool
) -> None:
    async with running(tls=files.server, handed=handed) as door:
        peer = peers(door.port)
        await until(lambda: door.gate.handshakes == 1)
    assert await heard(peer) is None
    assert door.gate.handshakes == 0
    assert not door.failed, "it was us who ended it"


def loopbacks() -> list[str]:
    """Return the loopback addresses that this machine has."""
    found = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as sock:
            sock.bind((host, 0))
            found.append(host)
    return found


@pytest.mark.parametrize("host", loopbacks())
def test_two_workers_listen_at_one_port_and_a_stranger_cannot(host: str) -> None:
    with listen(host, 0, backlog=1) as first:
        port = first.getsockname()[1]
        with listen(host, port, backlog=1):
            pass
        with socket.socket(first.family) as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((host, port))


@pytest.mark.parametrize("host", loopbacks())
def test_a_port_that_is_taken_leaves_no_socket_behind(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        with pytest.raises(OSError, match="in use"):
            listen(host, taken.getsockname()[1], backlog=1)
