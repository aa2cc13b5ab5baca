"""Which shard a partition key goes to: MD5 of the key, in the hash ranges of the open shards."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence

import msgspec

CACHE_MAX = 200_000
KEY_CHARACTERS_MAX = 256
"""The service's limit on a partition key."""


class Shard(msgspec.Struct, frozen=True):
    """A shard with its range of hash keys, both ends included; closed ones only have been written to."""

    shard_id: str
    first_hash: int
    last_hash: int
    closed: bool


def partition_key(tenant: str, device: str) -> str:
    """Return the key of a device's records; in one that would be too long a digest stands for the device."""
    key = f"{tenant}/{device}"
    if len(key) <= KEY_CHARACTERS_MAX:
        return key
    return f"{tenant}/{hashlib.sha256(device.encode()).hexdigest()}"


def hash_of(key: str) -> int:
    """Return the 128-bit hash key of a partition key."""
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest(), "big")


class ShardMap:
    """The open shards of a stream, as of one ListShards."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._all = {shard.shard_id: shard for shard in shards}
        self.open = sorted(
            (shard for shard in shards if not shard.closed), key=lambda shard: shard.first_hash
        )
        self._first = [shard.first_hash for shard in self.open]
        self._cache: dict[str, str] = {}

    def shard_of(self, key: str) -> str:
        """Return the id of the open shard that takes `key`."""
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            position = bisect.bisect_right(self._first, hash_of(key)) - 1
            found = self._cache[key] = self.open[max(0, position)].shard_id
        return found

    def holds(self, shard_id: str, key: str) -> bool:
        """Return whether `key` is in the range of a shard; consumers drop records outside of it."""
        shard = self._all.get(shard_id)
        return shard is not None and shard.first_hash <= hash_of(key) <= shard.last_hash
