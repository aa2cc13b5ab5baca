"""What is done with a descriptor that is about to be closed."""

from __future__ import annotations

import contextlib
import os


def read_empty(fd: int, *, reads_max: int, read_bytes: int) -> None:
    """Drop what a peer has sent, in at most `reads_max` reads that do not block.

    Bytes that are unread when a socket is closed make the kernel reset it, and so take our last words back
    (RFC 1122, 4.2.2.13).
    """
    with contextlib.suppress(OSError):
        for _ in range(reads_max):
            if not os.read(fd, read_bytes):
                break
