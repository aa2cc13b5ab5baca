"""Plain sockets: what their readers hear, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ingest.mqtt.sockets import EVENTS_MAX, READ_BYTES, Sockets, SocketWire
from ingest.pki import DevelopmentCa
from runtime import clock
from runtime.tls.material import TlsFiles, load


class Heard:
    """Notes what it is told."""

    def __init__(self, wire: SocketWire) -> None:
        self.wire = wire
        self.said: list[str] = []

    def received(self, data: bytes) -> None:
        self.said.append(data.decode())

    def peer_left(self) -> None:
        self.said.append("left")

    def ended(self) -> None:
        self.said.append("ended")

    def pause_writing(self) -> None:
        self.said.append("pause")

    def resume_writing(self) -> None:
        self.said.append("resume")


class Pair:
    """One connection: the peer's socket, and the reader of ours."""

    def __init__(self, sockets: Sockets, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        ours, self.peer = ends or socket.socketpair()
        ours.setblocking(False)
        self.sockets = sockets
        self.readers: list[Heard] = []
        sockets.add(ours, self._make, "peer")
        self.reader = self.readers[0]

    def _make(self, wire: SocketWire, name: str) -> Heard:
        assert name == "peer"
        self.readers.append(Heard(wire))
        return self.readers[0]

    async def said(self, count: int) -> list[str]:
        async with asyncio.timeout(5):
            while len(self.reader.said) < count:
                await asyncio.sleep(0.001)
        return self.reader.said


class Contexts:
    """What the two ends of a TLS connection go by."""

    def __init__(self, folder: Path) -> None:
        ca = DevelopmentCa.create(folder)
        server, device = ca.server(["localhost"]), ca.device("t", "d")
        files = TlsFiles(
            certificate=server.certificate, key=server.key, client_ca=ca.ca_path, crl=ca.crl_path
        )
        self.server = load(files, node_secret=b"s" * 32, now_s=clock.unix_s()).contexts[True, "mqtt"]
        self.device = ssl.create_default_context(cafile=str(ca.ca_path))
        self.device.load_cert_chain(device.certificate, device.key)

    def connected(self) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        """Return both ends of a connection, after the handshake."""
        ours, theirs = socket.socketpair()
        server = self.server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
        device = self.device.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
        waiting = [device, server]
        for end in waiting:
            end.setblocking(False)
        while waiting:
            for end in tuple(waiting):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    waiting.remove(end)
        device.settimeout(5)
        return server, device


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def plain() -> AsyncIterator[Pair]:
    sockets = Sockets(asyncio.get_running_loop(), linger_s=0.0)
    made = Pair(sockets)
    yield made
    sockets.close()
    made.peer.close()


@pytest.fixture(params=["plain", "tls"])
async def pair(request: pytest.FixtureRequest, contexts: Contexts) -> AsyncIterator[Pair]:
    sockets = Sockets(asyncio.get_running_loop(), linger_s=0.0)
    made = Pair(sockets, contexts.connected() if request.param == "tls" else None)
    yield made
    sockets.close()
    made.peer.close()


async def test_what_a_peer_sends_is_read_and_answered(pair: Pair) -> None:
    pair.peer.send(b"hello")
    assert await pair.said(1) == ["hello"]
    pair.reader.wire.write(b"answer")
    assert pair.peer.recv(10) == b"answer"


async def test_a_peer_that_hangs_up_is_known_to_have_left_before_its_last_words(pair: Pair) -> None:
    pair.peer.send(b"last")
    pair.peer.close()
    said = await pair.said(3)
    assert said[:2] == ["left", "last"]
    assert said[-1] == "ended"


async def test_a_peer_that_hangs_up_while_it_is_not_read_is_heard_later(pair: Pair) -> None:
    pair.reader.wire.pause_reading()
    pair.peer.send(b"last")
    pair.peer.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.01)
    assert pair.reader.said == []
    pair.reader.wire.resume_reading()
    assert (await pair.said(2))[:2] == ["left", "last"]


async def test_an_answer_that_comes_after_the_end_reaches_nobody_else(plain: Pair) -> None:
    old = plain.reader.wire
    fd = old.fd
    plain.sockets.end(old)  # its reader hears of it in the next turn; a commit may end before
    again = Pair(plain.sockets)
    assert again.reader.wire.fd == fd
    old.write(b"@\x02\0\x01")
    old.resume_reading()
    old.close()
    again.peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        again.peer.recv(4)
    again.peer.send(b"new")
    assert await again.said(1) == ["new"]
    again.peer.close()


async def test_a_descriptor_that_is_used_again_is_another_connection(plain: Pair) -> None:
    fd = plain.reader.wire.fd
    plain.reader.wire.close()
    assert await plain.said(1) == ["ended"]
    again = Pair(plain.sockets)
    assert again.reader.wire.fd == fd
    plain.reader.wire.pause_reading()
    again.peer.send(b"new")
    assert await again.said(1) == ["new"]
    assert plain.reader.said == ["ended"]
    again.peer.close()


async def test_more_than_one_read_takes_is_read_to_its_end(pair: Pair) -> None:
    sent = 3 * READ_BYTES + 5
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(pair.peer.sendall, b"x" * sent))
        while sum(map(len, pair.reader.said)) < sent:
            await asyncio.sleep(0.001)


async def test_two_records_that_come_at_once_are_both_read(pair: Pair) -> None:
    pair.reader.wire.pause_reading()
    pair.peer.send(b"one")
    pair.peer.send(b"two")
    assert not pair.reader.said
    assert pair.reader.wire.has_unread()
    pair.reader.wire.resume_reading()
    async with asyncio.timeout(5):
        while "".join(pair.reader.said) != "onetwo":
            await asyncio.sleep(0.001)
    assert not pair.reader.wire.has_unread()


async def test_what_a_slow_peer_does_not_take_goes_out_later_and_in_order(pair: Pair) -> None:
    wire = pair.reader.wire
    said = b"".join(number.to_bytes(4, "big") for number in range(500_000))
    for start in range(0, len(said), 50_000):
        wire.write(said[start : start + 50_000])
    assert pair.reader.said == ["pause"]
    wire.close()
    heard = bytearray()
    while len(heard) < len(said):
        heard += await asyncio.to_thread(pair.peer.recv, 1 << 20)
    assert heard == said
    assert (await pair.said(3)) == ["pause", "resume", "ended"]


async def test_a_peer_is_told_that_it_is_over(pair: Pair) -> None:
    pair.reader.wire.write(b"bye")
    pair.reader.wire.close()
    assert await asyncio.to_thread(pair.peer.recv, 10) == b"bye"
    assert await asyncio.to_thread(pair.peer.recv, 10) == b""  # with TLS: and not ended in mid-air
    assert await pair.said(1) == ["ended"]


async def test_noise_on_a_tls_connection_ends_it(contexts: Contexts) -> None:
    sockets = Sockets(asyncio.get_running_loop(), linger_s=0.0)
    made = Pair(sockets, contexts.connected())
    os.write(made.peer.fileno(), b"this is no record")
    assert await made.said(1) == ["ended"]
    made.reader.wire.write(b"nobody hears this")
    sockets.close()
    made.peer.close()


async def test_what_comes_while_a_worker_lingers_is_read_together_after_it() -> None:
    sockets = Sockets(asyncio.get_running_loop(), linger_s=0.1)
    made = Pair(sockets)
    made.peer.send(b"1")
    assert await made.said(1) == ["1"]
    made.peer.send(b"2")
    await asyncio.sleep(0.02)
    made.peer.send(b"3")
    assert await made.said(2) == ["1", "23"]
    await asyncio.sleep(0.25)  # nothing comes for a while
    made.peer.send(b"4")
    assert await made.said(3) == ["1", "23", "4"]
    sockets.close()
    await asyncio.sleep(0.15)
    made.peer.close()


async def test_a_worker_that_lingers_takes_turns_at_once_while_there_is_more() -> None:
    sockets = Sockets(asyncio.get_running_loop(), linger_s=0.2)
    pairs = [Pair(sockets) for _ in range(EVENTS_MAX + 20)]
    for pair in pairs:
        pair.peer.send(b"1")
    began_s = asyncio.get_running_loop().time()
    for pair in pairs:
        assert await pair.said(1) == ["1"]
    assert asyncio.get_running_loop().time() - began_s < 0.39, "within one linger, not two"
    sockets.close()
    for pair in pairs:
        pair.peer.close()


@pytest.mark.parametrize("linger_s", [0.0, 0.01])
async def test_a_failure_of_ours_closes_one_connection_and_no_other_is_forgotten(linger_s: float) -> None:
    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    sockets = Sockets(loop, linger_s=linger_s)
    pairs = [Pair(sockets) for _ in range(8)]

    def fail(data: bytes) -> None:
        raise ValueError(data)

    pairs[3].reader.received = fail  # type: ignore[method-assign]
    for pair in pairs:
        pair.peer.send(b"1")
    for pair in pairs[:3] + pairs[4:]:
        assert await pair.said(1) == ["1"]
    assert await pairs[3].said(1) == ["ended"]
    pairs[0].peer.send(b"2")
    assert await pairs[0].said(2) == ["1", "2"]
    assert [type(failure) for failure in failures] == [ValueError]
    sockets.close()
    for pair in pairs:
        pair.peer.close()
