"""The bounds that the composition root gives to the pipeline and to the spool."""

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
    """What a spool may hold. `settle_s` is how long deletions wait to share a transaction."""

    bytes_max: int
    age_max_s: float
    group_bytes_max: int
    fresh_bytes_max: int
    settle_s: float
