"""The one contract of all protocols that a simulated device speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from loadtests.devices import Reading

NOT_MQTT_NOT_HTTP: Final = b"\x00\xff\x00\xff" * 16
"""What no server can take for a packet, a request or a frame."""


class Gone(Exception):
    """The connection is of no more use; the text says why, in few words and without names."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What became of readings: acknowledged if there is no reason."""

    seqs: Sequence[int]
    reason: str = ""


class Client(Protocol):
    """One device on one connection after the other. `hear` raises `Gone`."""

    ready: bool
    """Whether the server has said that it may publish."""

    def open(self) -> bytes:
        """Begin on a new connection; return what to say first."""

    def next_count(self) -> int:
        """Return how many readings the next message takes; 0 while none may be sent."""

    def publish(self, readings: Sequence[Reading], payload: bytes) -> bytes:
        """Return the message for these readings, which `payload` tells."""

    def hear(self, data: bytes) -> list[Answer]:
        """Return the answers in what came."""

    def reply(self) -> bytes:
        """Return what is to be said because of what was heard."""

    def ping(self) -> bytes:
        """Return what keeps a silent connection open; empty if nothing need be said."""

    def close(self) -> bytes:
        """Return what to say at the end."""
