"""Which shards may be read now: a shard that came of others waits until these have been read to their end.

So the records of a device keep their order when a stream is split or merged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

END: Final = "end"
"""The checkpoint of a shard that has been read to its end."""


class Listed(msgspec.Struct, frozen=True):
    """A shard of ListShards, with what it came of: nothing, a shard that was split, or two that merged."""

    shard_id: str
    parents: tuple[str, ...]


def readable(shards: Sequence[Listed], ended: Collection[str]) -> list[str]:
    """Return the shards that are not at their end and whose parents, if they are still listed, are."""
    listed = {shard.shard_id for shard in shards}
    return [
        shard.shard_id
        for shard in shards
        if shard.shard_id not in ended
        and all(parent in ended or parent not in listed for parent in shard.parents)
    ]
