"""MQTT connections over one epoll of their own, which the loop watches as a single descriptor.

A read of a connection costs a system call and a call of `MqttConnection.received`, an answer a system call:
no transport, no handle and no buffer of the loop's stands between (bench/side_by_side measures it). With TLS,
OpenSSL makes those calls: it has the descriptor, so that no second copy of the bytes and no memory of an idle
connection is needed (decision 0014).

With a linger, what comes waits in the kernel for the next tick: where many workers share few cores, a turn
for each message would cost more than the message.

Limits: one turn reads `EVENTS_MAX` connections of `READ_BYTES` each; a peer that does not take its answers
is read no more beyond `UNSENT_BYTES_MAX`, and is closed when it has not taken them by a deadline of the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import termios
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from ingest.descriptor import read_empty

EVENTS_MAX: Final = 256
READ_BYTES: Final = 65_536
TLS_READ_BYTES: Final = 16_384
"""A whole record (RFC 8446, 5.1), so that OpenSSL keeps nothing back that the poll does not know of."""
UNSENT_BYTES_MAX: Final = 65_536
LAST_READS_MAX: Final = 16
"""How often a closing socket is read, so that its peer hears our last words."""

CLOSED: Final = -1
"""No descriptor: writing to it is an error like any other."""

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_LEFT: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The peer has hung up; what it sent before can still be read."""
_WATCHED: Final = _READ | select.EPOLLRDHUP
_LATER: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""The socket, or the other half of a TLS record, is not there yet."""


PeerT = TypeVar("PeerT")
"""What is known of who is at the other end."""


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

    def read(self) -> bytes | None:
        """Return what has come, None for nothing yet, and nothing when it is over."""
        try:
            return os.read(self._fd, READ_BYTES)
        except _LATER:
            return None
        except OSError:
            return b""

    def write(self, data: bytes, /) -> None:
        """Send `data`, now if the socket takes it. Hot: guarded by bench/test_sockets.py::test_turn."""
        if self._unsent is None:
            try:
                sent = self._send(data)
            except _LATER:
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
            del unsent[: self._send(unsent)]
        except _LATER:
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

    def hang_up(self) -> None:
        """Close the descriptor and write nowhere any more: its number may soon be another connection's.

        Until the reader hears of the end, commits still bring answers for it.
        """
        fd, self._fd = self._fd, CLOSED
        read_empty(fd, reads_max=LAST_READS_MAX, read_bytes=READ_BYTES)
        os.close(fd)

    def _send(self, data: bytes | bytearray) -> int:
        return os.write(self._fd, data)

    def has_unread(self) -> bool:
        """Return whether something waits in the kernel."""
        count = bytearray(4)
        if self._fd != CLOSED:
            fcntl.ioctl(self._fd, termios.FIONREAD, count)
        return any(count)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._fd

    @property
    def events(self) -> int:
        """What the poll has to report, beside errors and hang-ups: each once (epoll(7), edge-triggered)."""
        return select.EPOLLET | self._awaited()

    def _awaited(self) -> int:
        reading = _WATCHED if self.reading and not self.closing else 0
        return reading | (_WRITE if self._unsent is not None else 0)


class TlsWire(SocketWire):
    """The same with TLS, after its handshake."""

    __slots__ = ("_tls",)

    def __init__(self, sockets: Sockets, tls: ssl.SSLSocket) -> None:
        super().__init__(sockets, tls.fileno())
        self._tls = tls

    def read(self) -> bytes | None:
        """Return what has come, None for nothing yet, and nothing when it is over."""
        try:
            return self._tls.recv(TLS_READ_BYTES)
        except _LATER:
            return None
        except OSError:
            return b""

    @property
    def events(self) -> int:
        """What the poll has to report, again and again: a record that was read says nothing of the next."""
        return self._awaited()

    def hang_up(self) -> None:
        """Say that this is the end, and wait for no answer to that."""
        with contextlib.suppress(OSError):
            self._tls.unwrap()
        read_empty(self._fd, reads_max=LAST_READS_MAX, read_bytes=READ_BYTES)
        self._fd = CLOSED
        self._tls.close()

    def _send(self, data: bytes | bytearray) -> int:
        if self._fd == CLOSED:
            raise OSError(errno.EBADF, "closed")
        return self._tls.send(data)


class Sockets:
    """The driver of all MQTT sockets of a worker; it looks at them each `linger_s`, or when there is news."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, linger_s: float) -> None:
        self._loop = loop
        self._linger_s = linger_s
        self._poll = select.epoll()
        self._wires: list[SocketWire | None] = []
        """By descriptor: they are dense, and so this takes less memory than a dict."""
        self._closed = False
        if linger_s:
            # Not watched by the loop: the kernel would look through all of it each time that begins again.
            loop.call_later(linger_s, self._tick)
        else:
            loop.add_reader(self._poll.fileno(), self._turn)

    def add(self, sock: socket.socket, make: Callable[[SocketWire, PeerT], Reader], peer: PeerT) -> None:
        """Take over a connected socket, of TLS after its handshake; `make` returns what it carries."""
        wire = TlsWire(self, sock) if isinstance(sock, ssl.SSLSocket) else SocketWire(self, sock.detach())
        fd = wire.fd
        try:
            self._poll.register(fd, wire.events)
        except OSError:  # no memory, or no room for another watch: the peer may come back
            wire.hang_up()
            return
        missing = fd + 1 - len(self._wires)
        if missing > 0:
            self._wires.extend([None] * missing)
        self._wires[fd] = wire
        wire.reader = make(wire, peer)

    def watch(self, wire: SocketWire) -> None:
        """Tell the poll what a wire waits for."""
        if wire.fd != CLOSED:
            self._poll.modify(wire.fd, wire.events)

    def _tick(self) -> None:
        """Take a turn after each linger, and more at once while there is more than a turn takes."""
        if self._closed:
            return
        read = EVENTS_MAX
        try:
            read = self._turn()
        finally:
            if read < EVENTS_MAX:
                self._loop.call_later(self._linger_s, self._tick)
            else:
                self._loop.call_soon(self._tick)

    def _turn(self) -> int:
        """Read whoever has sent something; return how many there were.

        Hot: guarded by bench/test_sockets.py::test_turn.
        """
        wires = self._wires
        wire: SocketWire | None = None
        ready = self._poll.poll(0, EVENTS_MAX)
        try:
            for fd, event in ready:
                wire = wires[fd]
                if wire is None:
                    continue  # closed by what was read before it
                if event == _READ:
                    data = wire.read()
                    if data:
                        wire.reader.received(data)
                        if len(data) == READ_BYTES:
                            self.watch(wire)  # for what is left
                    elif data is not None:
                        self.end(wire)
                else:
                    self._attend(wire, event)
        except BaseException:
            self._abandon(wire, ready)
            raise
        return len(ready)

    def _abandon(self, wire: SocketWire | None, ready: list[tuple[int, int]]) -> None:
        """Close whose words we could not handle, and have the others of the turn reported once more."""
        if wire is not None:
            self.end(wire)
        for fd, _ in ready:
            other = self._wires[fd]
            if other is not None:
                self.watch(other)

    def _attend(self, wire: SocketWire, event: int) -> None:
        """See to everything but a plain read."""
        if event & _WRITE:
            wire.flush()
        if wire.fd == CLOSED:
            return
        if event & _READ and wire.events & _READ:
            if event & _LEFT:
                wire.reader.peer_left()
            data = wire.read()
            if data:
                wire.reader.received(data)
                self.watch(wire)  # for what is left, and the end of it
            elif data is not None:
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
        wire.hang_up()
        self._loop.call_soon(wire.reader.ended)

    def close(self) -> None:
        """Close all of them."""
        self._closed = True
        self._loop.remove_reader(self._poll.fileno())
        for wire in self._wires:
            if wire is not None:
                self.end(wire)
        self._poll.close()
