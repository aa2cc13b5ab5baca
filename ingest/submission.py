"""What became of what HTTP or a WebSocket handed in."""

from __future__ import annotations

import msgspec

from ingest.outcome import Outcome


class Submission(msgspec.Struct, frozen=True):
    """What became of one HTTP or WebSocket submission.

    Accepted records have the ids `{group}-{first_index}` to `{group}-{first_index + count - 1}`.
    `retry_after_s` is when a limit would let all of it through; `pause_s` is how long to read no more, where
    the plan pauses, whatever the outcome.
    """

    outcome: Outcome
    count: int = 0
    group: str = ""
    first_index: int = 0
    detail: str = ""
    retry_after_s: float = 0.0
    pause_s: float = 0.0
