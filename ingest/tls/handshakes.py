"""TLS handshakes of a worker: takes sockets, gives back sockets that speak TLS.

OpenSSL reads and writes the descriptor itself, so that no buffer outlives the handshake. All share one epoll,
which the loop watches as a single descriptor: no task, timer or watch of the loop stands for each.

Limits: each has `deadline_s` in all, however much its peer says; one turn goes on with `TURN_MAX` of them,
since a step of one takes up to a millisecond in which nobody else is served.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from typing import Final, Protocol

from ingest.descriptor import read_empty
from runtime import clock

TURN_MAX: Final = 8
LAST_READS_MAX: Final = 4
LAST_READ_BYTES: Final = 16_384
"""What is read of a peer before its socket is closed, so that it hears our alert."""


class Ended(Protocol):
    """Hears of each handshake once."""

    def __call__(self, tls: ssl.SSLSocket | None, error: OSError | None) -> None:
        """Take the socket over, or hear why there is none; without an error it is we who ended it."""


class _Handshake:
    """One that is under way."""

    __slots__ = ("due_s", "ended", "tls", "watched")

    def __init__(self, tls: ssl.SSLSocket, ended: Ended, due_s: float) -> None:
        self.tls = tls
        self.ended = ended
        self.due_s = due_s
        self.watched = select.EPOLLIN


class Handshakes:
    """The driver of the handshakes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, deadline_s: float) -> None:
        self._loop = loop
        self._deadline_s = deadline_s
        self._poll = select.epoll()
        self._under_way: dict[int, _Handshake] = {}
        """By descriptor, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._poll.fileno(), self._ready)

    def begin(self, peer: socket.socket, context: ssl.SSLContext, ended: Ended) -> None:
        """Shake hands with a peer whose socket does not block."""
        try:
            peer.getpeername()  # who is gone already would take the descriptor along
            tls = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            peer.close()
            ended(None, error)
            return
        try:
            self._poll.register(tls.fileno(), select.EPOLLIN)
        except OSError as error:
            tls.close()
            ended(None, error)
            return
        self._under_way[tls.fileno()] = _Handshake(tls, ended, clock.monotonic_s() + self._deadline_s)
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline_s, self._expire)

    def close(self) -> None:
        """End all that are under way, which is nobody's failure."""
        self._loop.remove_reader(self._poll.fileno())
        if self._timer is not None:
            self._timer.cancel()
        for fd in tuple(self._under_way):
            self._fail(fd, None)
        self._poll.close()

    def _ready(self) -> None:
        for fd, _ in self._poll.poll(0, TURN_MAX):
            self._go_on(fd)

    def _go_on(self, fd: int) -> None:
        handshake = self._under_way[fd]
        try:
            handshake.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(handshake, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._watch(handshake, select.EPOLLOUT)
        except OSError as error:
            self._fail(fd, error)
        else:
            self._poll.unregister(fd)
            del self._under_way[fd]
            handshake.ended(handshake.tls, None)

    def _watch(self, handshake: _Handshake, events: int) -> None:
        if handshake.watched != events:
            handshake.watched = events
            self._poll.modify(handshake.tls.fileno(), events)

    def _fail(self, fd: int, error: OSError | None) -> None:
        handshake = self._under_way.pop(fd)
        self._poll.unregister(fd)
        read_empty(fd, reads_max=LAST_READS_MAX, read_bytes=LAST_READ_BYTES)
        handshake.tls.close()
        handshake.ended(None, error)

    def _expire(self) -> None:
        self._timer = None
        now_s = clock.monotonic_s()
        for fd, handshake in tuple(self._under_way.items()):
            if handshake.due_s > now_s:
                self._timer = self._loop.call_later(handshake.due_s - now_s, self._expire)
                return
            self._fail(fd, TimeoutError("the handshake took too long"))
