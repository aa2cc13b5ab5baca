"""A device's connection: a socket that never blocks, with TLS on top or not. No waiting, no clock."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from typing import Final

from gevent import monkey

RawSocket: Final = monkey.get_original("socket", "socket")
"""gevent's would register each with its own loop; ours are all in one epoll."""
IP_BIND_ADDRESS_NO_PORT: Final = 24
"""linux/in.h: the port is chosen when the peer is known, so that many connections may share one."""
RESET: Final = struct.pack("ii", 1, 0)
READ_BYTES: Final = 65_536
SLOW_BUFFER_BYTES: Final = 4096
SLOW_SEGMENT_BYTES: Final = 536
"""On the loopback's large segments the kernel would keep megabytes for a slow reader: nobody noticed."""


class Lost(Exception):
    """The connection is lost; the text says why, in few words."""


class Link:
    """One connection after the other to `address`; `source` is where from."""

    __slots__ = (
        "_address",
        "_context",
        "_host",
        "_incoming",
        "_out",
        "_outgoing",
        "_slow",
        "_source",
        "_tls",
        "sock",
    )

    def __init__(
        self,
        address: tuple[str, int],
        *,
        source: str | None,
        context: ssl.SSLContext | None,
        slow: bool,
    ) -> None:
        self._address = address
        self._source = source
        self._context = context
        self._slow = slow
        self._host = address[0]
        self._tls: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self._out = b""
        self.sock: socket.socket | None = None

    @property
    def owes(self) -> bool:
        """Return whether bytes wait for room in the socket."""
        return bool(self._out)

    def connect(self) -> int:
        """Begin to connect; return the descriptor. Raises `Lost`."""
        assert self.sock is None
        sock = RawSocket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SLOW_SEGMENT_BYTES)
        try:
            if self._source is not None:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((self._source, 0))
            code = sock.connect_ex(self._address)
        except OSError as error:
            sock.close()
            raise Lost(_why(error)) from error
        if code not in {0, errno.EINPROGRESS}:
            sock.close()
            raise Lost(_why(OSError(code, "")))
        self.sock = sock
        self._out = b""
        self._tls = None
        return int(sock.fileno())

    def connected(self) -> None:
        """Hear that the socket takes bytes for the first time; raises `Lost`."""
        assert self.sock is not None
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise Lost(_why(OSError(code, "")))
        if self._context is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_hostname=self._host)

    def handshake(self) -> bool:
        """Go on with the TLS handshake; return whether it is done, as far as we can see. Raises `Lost`."""
        if self._tls is None:
            return True
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise Lost(_alert(error)) from error
        finally:
            self._flush_tls()
        return True

    def feed(self) -> None:
        """Take what came for TLS, while the handshake is not done; raises `Lost`."""
        data = self._receive()
        if data:
            assert self._incoming is not None
            self._incoming.write(data)

    def read(self) -> bytes:
        """Return what came, empty if nothing did; raises `Lost`."""
        data = self._receive()
        if self._tls is None or not data:
            return data
        assert self._incoming is not None
        self._incoming.write(data)
        return self.decrypted()

    def decrypted(self) -> bytes:
        """Return what TLS has already; raises `Lost`."""
        if self._tls is None:
            return b""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(READ_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise Lost(_alert(error)) from error
        finally:
            self._flush_tls()
        return b"".join(parts)

    def _receive(self) -> bytes:
        assert self.sock is not None
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Lost(_why(error)) from error
        if not data:
            raise Lost("closed by the server")
        return data

    def write(self, data: bytes) -> None:
        """Send `data`, or keep what does not fit; raises `Lost`."""
        if self._tls is not None:
            self._tls.write(data)
            self._flush_tls()
        else:
            self._send(data)

    def _flush_tls(self) -> None:
        assert self._outgoing is not None
        if self._outgoing.pending:
            self._send(self._outgoing.read())

    def _send(self, data: bytes) -> None:
        if self._out:
            self._out += data
            return
        assert self.sock is not None
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Lost(_why(error)) from error
        self._out = data[sent:]

    def flush(self) -> None:
        """Send what was kept; raises `Lost`."""
        kept, self._out = self._out, b""
        if kept:
            self._send(kept)

    def close(self, *, reset: bool) -> None:
        """Close it; with a reset the server hears no goodbye."""
        if self.sock is None:
            return
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()
        self.sock = None
        self._tls = self._incoming = self._outgoing = None
        self._out = b""


def _why(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "?") if error.errno else str(error)


def _alert(error: ssl.SSLError) -> str:
    return f"TLS: {(error.reason or 'failed').lower()}"
