"""The bounds that the composition root gives to the pipeline, the spool and the sink."""

from __future__ import annotations

import msgspec


class PipelineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the pipeline.

    Of refused payloads `refused_kept_per_s` are kept, the first `refused_kept_bytes_max` of each; all dead
    letters together are at most `dead_letters_max`, of `dead_letters_bytes_max`, when another is kept.
    """

    routes_max: int
    records_max: int
    group_bytes_max: int
    dead_letters_max: int
    dead_letters_bytes_max: int
    refused_kept_per_s: float
    refused_kept_bytes_max: int
    refuse_when_full: bool


class SpoolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a spool may hold.

    `settle_s` is how long deletions wait for a group to be committed with.
    """

    bytes_max: int
    age_max_s: float
    group_bytes_max: int
    fresh_bytes_max: int
    settle_s: float


class KinesisLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the sink, and what a shard takes (1 MB/s and 1,000 records/s at AWS).

    A call follows another only after `linger_s`, unless a shard has a full record: records are larger so, and
    what comes alone still goes at once. A shard map is read again when it is `map_age_max_s` old, and if that
    fails after `old_map_retry_s`; after `map_retry_s` if nothing can be delivered without.
    """

    pending_bytes_max: int
    record_bytes_max: int
    concurrency_max: int
    call_deadline_s: float
    shard_bytes_per_s: int
    shard_records_per_s: int
    linger_s: float
    map_age_max_s: float
    old_map_retry_s: float
    map_retry_s: float
