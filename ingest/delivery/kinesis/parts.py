"""What waits for a shard: the envelopes of a run, and where they come from."""

from __future__ import annotations

from typing import Final

import msgspec

PART_BYTES: Final = 400
ENVELOPE_BYTES: Final = 48
"""What a part, and each of its envelopes, take in memory beside the bytes of the envelopes."""


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where the records of a part come from, for the dead letter that one of them may become."""

    tenant: str
    device: str
    stream: str
    received_at_ms: int


class Part(msgspec.Struct, frozen=True, gc=False):
    """Envelopes of one run: consecutive records of one device, of group `group`.

    `bytes` are those of the envelopes; `held` is what the part takes of the memory that is to be bounded.
    """

    group: int
    first_index: int
    key: str
    envelopes: list[bytes]
    bytes: int
    held: int
    origin: Origin

    def split(self, count: int) -> tuple[Part, Part]:
        """Return the first `count` envelopes and the rest."""
        first, rest = self.envelopes[:count], self.envelopes[count:]
        size = sum(map(len, first))
        held = size + ENVELOPE_BYTES * count  # in all as much as before: it is given back in two parts
        index = self.first_index + count
        return (
            Part(self.group, self.first_index, self.key, first, size, held, self.origin),
            Part(self.group, index, self.key, rest, self.bytes - size, self.held - held, self.origin),
        )


def held_bytes(size: int, count: int) -> int:
    """Return what a part of `count` envelopes of `size` bytes in all takes of memory."""
    return size + PART_BYTES + ENVELOPE_BYTES * count
