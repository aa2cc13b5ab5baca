"""Session ticket keys that every worker of a node shares, so that a ticket resumes on any of them.

Python's `ssl` has no call for this, so it goes to OpenSSL itself: `SSL_CTX_ctrl` with
SSL_CTRL_SET_TLSEXT_TICKET_KEYS (decision 0007). The context pointer is the first field of the object;
what was set is read back and compared, and where that fails each worker keeps keys of its own.
"""

from __future__ import annotations

import _ssl
import ctypes
import hashlib
import hmac
import ssl
import sys
from typing import Final

KEY_BYTES: Final = 80
_SET_TICKET_KEYS: Final = 59
_GET_TICKET_KEYS: Final = 58
_MODE: Final = 33
_MODE_RELEASE_BUFFERS: Final = 0x10


def derive_keys(secret: bytes, trust: bytes) -> bytes:
    """Return ticket keys for a node `secret` and what is trusted; new trust ends old tickets."""
    digest = hashlib.sha256(trust).digest()
    return b"".join(hmac.digest(secret, digest + bytes((part,)), "sha256") for part in range(3))[:KEY_BYTES]


def share(context: ssl.SSLContext, keys: bytes) -> bool:
    """Set the ticket keys of `context`; False where this build does not let us."""
    assert len(keys) == KEY_BYTES
    control = _control()
    if control is None:
        return False
    pointer = _pointer(context)
    before = ctypes.create_string_buffer(KEY_BYTES)
    if control(pointer, _GET_TICKET_KEYS, KEY_BYTES, before) != 1:
        return False
    if control(pointer, _SET_TICKET_KEYS, KEY_BYTES, ctypes.create_string_buffer(keys, KEY_BYTES)) != 1:
        return False
    after = ctypes.create_string_buffer(KEY_BYTES)
    return bool(control(pointer, _GET_TICKET_KEYS, KEY_BYTES, after) == 1 and after.raw == keys)


def release_buffers(context: ssl.SSLContext) -> None:
    """Let OpenSSL free the record buffers of idle connections: about 34 KB each."""
    control = _control()
    if control is not None:
        control(_pointer(context), _MODE, _MODE_RELEASE_BUFFERS, None)


def _pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)


def _control() -> ctypes._NamedFuncPointer | None:
    """Return OpenSSL's `SSL_CTX_ctrl` of the library that `ssl` itself uses."""
    if sys.implementation.name != "cpython":
        return None
    try:
        function = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
    function.restype = ctypes.c_long
    return function
