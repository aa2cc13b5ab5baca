"""Plain MQTT connections over one epoll of their own, which the loop watches as a single descriptor.

A read of a connection costs a system call and a call of `MqttConnection.received`, an answer a system call:
no transport, no handle and no buffer of the loop's stands between (bench/side_by_side measures it).

Limits: one turn reads `EVENTS_MAX` connections of `READ_BYTES` each; a peer that does not take its answers
is read no more beyond `UNSENT_BYTES_MAX`, and is closed when it has not taken them by a deadline of the hub.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import Final, Protocol

EVENTS_MAX: Final = 256
READ_BYTES: Final = 65_536
UNSENT_BYTES_MAX: Final = 65_536
LINGER_READS_MAX: Final = 16
"""How often a closing socket is read empty: unread bytes would make the kernel take our last words back."""

CLOSED: Final = -1
"""No descriptor: writing to it is an error like any other."""

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_LEFT: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The peer has hung up; what it sent before can still be read."""
_WATCHED: Final = _READ | select.EPOLLRDHUP


class Reader(Protocol):
    """What a wire carries: one MQTT connection."""

    def received(self, data: bytes) -> None:
        """Take what was read."""

    def peer_left(self) -> None:
        """Hear that the peer has hung up, before the last of what it sent."""

    def ended(self) -> None:
        """Hear that the wire is gone."""

    def pause_writing(self) -> None:
        """Hear that the peer does not take its answers."""

    def resume_writing(self) -> None:
        """Hear that it does again."""


class SocketWire:
    """The wire of one connection: a descriptor, and what could not be written yet."""

    __slots__ = ("_fd", "_sockets", "_unsent", "closing", "reader", "reading")

    def __init__(self, sockets: Sockets, fd: int) -> None:
        self._sockets = sockets
        self._fd = fd
        self._unsent: bytearray | None = None
        self.reader: Reader
        self.reading = True
        self.closing = False

    def write(self, data: bytes, /) -> None:
        """Send `data`, now if the socket takes it. Hot: guarded by bench/test_sockets.py::test_ready."""
        if self._unsent is None:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the poll reports it, outside of whatever this answers
            if sent == len(data):
                return
            self._unsent = bytearray(data[sent:])
            self._sockets.watch(self)
        else:
            self._unsent += data
        if len(self._unsent) > UNSENT_BYTES_MAX >= len(self._unsent) - len(data):
            self.reader.pause_writing()

    def flush(self) -> None:
        """Go on with what could not be written."""
        unsent = self._unsent
        if unsent is None:
            return
        before = len(unsent)
        try:
            del unsent[: os.write(self._fd, unsent)]
        except BlockingIOError:
            return
        except OSError:
            unsent.clear()
        if before > UNSENT_BYTES_MAX >= len(unsent):
            self.reader.resume_writing()
        if not unsent:
            self._unsent = None
            self._sockets.watch(self)
            if self.closing:
                self._sockets.end(self)

    def close(self) -> None:
        """Send what is left, then close."""
        if self.closing:
            return
        self.closing = True
        if self._unsent is None:
            self._sockets.end(self)
        else:
            self._sockets.watch(self)

    def abort(self) -> None:
        """Close at once."""
        self.closing = True
        self._sockets.end(self)

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel."""
        self.reading = False
        self._sockets.watch(self)

    def resume_reading(self) -> None:
        """Read again."""
        self.reading = True
        self._sockets.watch(self)

    def forget_fd(self) -> None:
        """Write nowhere any more: the number may soon be another connection's.

        Until the reader hears of the end, commits still bring answers for it.
        """
        self._fd = CLOSED

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fd

    @property
    def events(self) -> int:
        """What the poll has to report, beside errors and hang-ups."""
        reading = _WATCHED if self.reading and not self.closing else 0
        return reading | (_WRITE if self._unsent is not None else 0)


class Sockets:
    """The driver of all plain MQTT sockets of a worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll = select.epoll()
        self._wires: list[SocketWire | None] = []
        """By descriptor: they are dense, and so this takes less memory than a dict."""
        loop.add_reader(self._poll.fileno(), self._ready)

    def add(self, peer: socket.socket, make: Callable[[SocketWire, str], Reader], name: str) -> None:
        """Take over a connected socket; `make` returns what it carries."""
        fd = peer.fileno()
        try:
            self._poll.register(fd, _WATCHED)
        except OSError:  # no memory, or no room for another watch: the peer may come back
            peer.close()
            return
        wire = SocketWire(self, peer.detach())
        missing = fd + 1 - len(self._wires)
        if missing > 0:
            self._wires.extend([None] * missing)
        self._wires[fd] = wire
        wire.reader = make(wire, name)

    def watch(self, wire: SocketWire) -> None:
        """Tell the poll what a wire waits for."""
        if wire.fd != CLOSED:
            self._poll.modify(wire.fd, wire.events)

    def _ready(self) -> None:
        """Read whoever has sent something. Hot: guarded by bench/test_sockets.py::test_ready."""
        wires = self._wires
        read = os.read
        for fd, event in self._poll.poll(0, EVENTS_MAX):
            wire = wires[fd]
            if wire is None:
                continue  # closed by what was read before it
            if event == _READ:
                try:
                    data = read(fd, READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if data:
                    wire.reader.received(data)
                else:
                    self.end(wire)
            else:
                self._attend(wire, event)

    def _attend(self, wire: SocketWire, event: int) -> None:
        """See to everything but a plain read."""
        if event & _WRITE:
            wire.flush()
        if wire.fd == CLOSED:
            return
        if event & _READ and wire.events & _READ:
            if event & _LEFT:
                wire.reader.peer_left()
            try:
                data = os.read(wire.fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                wire.reader.received(data)
                return
            self.end(wire)
        elif event & (select.EPOLLERR | select.EPOLLHUP):
            self.end(wire)

    def end(self, wire: SocketWire) -> None:
        """Close a socket; what it carried hears of it in the next turn of the loop."""
        fd = wire.fd
        if fd == CLOSED:
            return
        self._wires[fd] = None
        wire.closing = True
        try:
            for _ in range(LINGER_READS_MAX):
                if not os.read(fd, READ_BYTES):
                    break
        except OSError:
            pass
        os.close(fd)
        wire.forget_fd()
        self._loop.call_soon(wire.reader.ended)

    def close(self) -> None:
        """Close all of them."""
        self._loop.remove_reader(self._poll.fileno())
        for wire in self._wires:
            if wire is not None:
                self.end(wire)
        self._poll.close()
