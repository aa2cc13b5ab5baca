"""Accepts peers of one listening socket behind the gate, and starts TLS with them.

MQTT takes sockets (`mqtt/sockets.py`), with TLS after their handshake (`tls/handshakes.py`). HTTP takes
transports: the loop's own, with TLS aiofastnet's (a third less CPU a handshake than asyncio's, and a third of
the memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import aiofastnet

from ingest.gate import Gate
from ingest.tls.handshakes import Handshakes
from runtime import clock

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
DESCRIPTORS_WAIT_S: Final = 0.1
GONE: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
    }
)
"""What is wrong with the peer that `accept` would have returned, and not with our socket (accept(2))."""
SHUTDOWN_DEADLINE_S: Final = 2.0
"""How long a peer may take to answer a TLS close; many never do."""


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a listening socket that shares its port with those of the other workers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


class Acceptor:
    """The driver of one listening socket. `failed(error, peer)` hears of handshakes that failed.

    With `sockets`, a peer's socket is handed over, with `tls` after its handshake; else it gets a transport
    for a `protocol`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: Callable[[], ssl.SSLContext] | None,
        sockets: Callable[[socket.socket, str], None] | None,
        handshakes: Handshakes,
        handshake_deadline_s: float,
        handshakes_max: int,
        gate: Gate,
        connections: Callable[[], int],
        refused: Callable[[str, str], None],
        failed: Callable[[BaseException, str], None],
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._tls = tls
        self._sockets = sockets
        self._shaking = handshakes
        self._handshake_deadline_s = handshake_deadline_s
        self._handshakes_max = handshakes_max
        self._gate = gate
        self._connections = connections
        self._refused = refused
        self._failed = failed
        self._handshakes = 0
        self._open = False
        self._reading = False
        self._loop = asyncio.get_running_loop()
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Accept until cancelled."""
        if self._loop.get_exception_handler() is None:
            self._loop.set_exception_handler(_report)
        async with asyncio.TaskGroup() as self._tasks:
            self._open = True
            self._start()
            try:
                await asyncio.Event().wait()
            finally:
                self.close()

    def close(self) -> None:
        """Accept no more; connections that are open stay."""
        self._open = False
        self._stop()
        self._sock.close()

    def _start(self) -> None:
        if self._open and not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._ready)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _wait(self, wait_s: float) -> None:
        """Leave the peers in the backlog for a while."""
        self._stop()
        self._loop.call_later(wait_s, self._start)

    def _ready(self) -> None:
        count, wait_s = self._gate.admit(clock.monotonic_s(), self._handshakes_max - self._handshakes)
        for _ in range(count):
            try:
                peer, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                if error.errno not in OUT_OF_DESCRIPTORS:
                    raise
                self._refused("descriptors", "")
                self._wait(DESCRIPTORS_WAIT_S)
                return
            self._take(peer, f"{address[0]}:{address[1]}")
        if not count:
            self._wait(wait_s)

    def _take(self, peer: socket.socket, name: str) -> None:
        if not self._gate.accepted(clock.monotonic_s(), self._connections()):
            self._refused("connection_cap", name)
            peer.close()
            return
        peer.setblocking(False)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._sockets is not None and self._tls is None:
            self._gate.settled()  # there is no handshake
            self._sockets(peer, name)
            return
        self._handshakes += 1
        if self._sockets is not None and self._tls is not None:
            self._shaking.begin(peer, self._tls(), functools.partial(self._shaken, name))
            return
        assert self._tasks is not None
        self._tasks.create_task(self._connect(peer, name))

    def _shaken(self, name: str, tls: ssl.SSLSocket | None, error: OSError | None) -> None:
        self._handshakes -= 1
        self._gate.settled()
        if error is not None:
            self._failed(error, name)
        elif tls is not None:
            assert self._sockets is not None
            self._sockets(tls, name)

    async def _connect(self, peer: socket.socket, name: str) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._protocol, peer)
            else:
                await aiofastnet.connect_accepted_socket(
                    self._loop,
                    self._protocol,
                    peer,
                    ssl=self._tls(),
                    ssl_handshake_timeout=self._handshake_deadline_s,
                    ssl_shutdown_timeout=SHUTDOWN_DEADLINE_S,
                )
        except (OSError, EOFError, asyncio.CancelledError) as error:
            peer.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self._failed(error, name)
            # aiofastnet's future keeps the error, whose frames keep the future and all of its buffers.
            error.__traceback__ = None
        finally:
            self._handshakes -= 1
            self._gate.settled()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what the loop was told, but a peer that hangs up in its handshake: `failed` hears of that.

    aiofastnet tells the loop too, with a class for an exception, which cannot be logged.
    """
    if context.get("exception") is not ConnectionResetError:
        loop.default_exception_handler(context)
