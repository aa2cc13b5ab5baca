"""Plain sockets: what a read and an answer cost beside their system calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ingest.mqtt.sockets import Sockets, SocketWire

CONNECTIONS = 64
PACKET = bytes(147)


class Echo:
    """Answers each read with four bytes, as a PUBACK has."""

    def __init__(self, wire: SocketWire) -> None:
        self._wire = wire

    def received(self, data: bytes) -> None:
        assert len(data) == len(PACKET)
        self._wire.write(b"@\x02\0\x01")

    def peer_left(self) -> None:
        return

    def ended(self) -> None:
        return

    def pause_writing(self) -> None:
        return

    def resume_writing(self) -> None:
        return


@pytest.fixture
def rig() -> Iterator[tuple[Sockets, list[socket.socket]]]:
    loop = asyncio.new_event_loop()
    sockets = Sockets(loop, linger_s=0.0)
    peers = []
    for _ in range(CONNECTIONS):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        sockets.add(ours, lambda wire, _name: Echo(wire), "peer")
        peers.append(theirs)
    yield sockets, peers
    sockets.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for peer in peers:
        peer.close()


def test_turn(benchmark: Any, rig: tuple[Sockets, list[socket.socket]]) -> None:
    sockets, peers = rig

    def send() -> None:
        for peer in peers:
            peer.send(PACKET)

    def read_and_answer() -> None:
        sockets._turn()

    benchmark.pedantic(read_and_answer, setup=send, rounds=200)
    assert peers[0].recv(4) == b"@\x02\0\x01"
