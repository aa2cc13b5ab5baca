"""Plain sockets: what their readers hear, and in which order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from ingest.mqtt.sockets import Sockets, SocketWire


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

    def __init__(self, sockets: Sockets) -> None:
        ours, self.peer = socket.socketpair()
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


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    sockets = Sockets(asyncio.get_running_loop())
    made = Pair(sockets)
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


async def test_an_answer_that_comes_after_the_end_reaches_nobody_else(pair: Pair) -> None:
    old = pair.reader.wire
    fd = old.fd
    pair.sockets.end(old)  # its reader hears of it in the next turn; a commit may end before
    again = Pair(pair.sockets)
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


async def test_a_descriptor_that_is_used_again_is_another_connection(pair: Pair) -> None:
    fd = pair.reader.wire.fd
    pair.reader.wire.close()
    assert await pair.said(1) == ["ended"]
    again = Pair(pair.sockets)
    assert again.reader.wire.fd == fd
    pair.reader.wire.pause_reading()
    again.peer.send(b"new")
    assert await again.said(1) == ["new"]
    assert pair.reader.said == ["ended"]
    again.peer.close()
