"""What waits for a shard: the envelopes of a run, and where they come from."""

from __future__ import annotations

import msgspec


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where the records of a part come from, for the dead letter that one of them may become."""

    tenant: str
    device: str
    stream: str
    received_at_ms: int


class Part(msgspec.Struct, frozen=True, gc=False):
    """Envelopes of one run: consecutive records of one device, of group `group`."""

    group: int
    first_index: int
    key: str
    envelopes: list[bytes]
    bytes: int
    origin: Origin

    def split(self, count: int) -> tuple[Part, Part]:
        """Return the first `count` envelopes and the rest."""
        first, rest = self.envelopes[:count], self.envelopes[count:]
        size = sum(map(len, first))
        return (
            Part(self.group, self.first_index, self.key, first, size, self.origin),
            Part(self.group, self.first_index + count, self.key, rest, self.bytes - size, self.origin),
        )
