"""Tumbling windows of event time: aligned to the Unix epoch, each size a multiple of the one before it.

A reading is folded into a window of the finest size; coarser windows are merged from finer ones.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from services.analytics.rollup import Rollup

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SIZE: Final = r"[1-9][0-9]{0,4}[smhd]"


class Window(msgspec.Struct, frozen=True):
    """One size of windows and how long they are kept, both in seconds."""

    name: str
    size_s: int
    keep_s: int

    def start_of(self, ts_ms: int) -> int:
        """Return when the window of a time begins, in Unix seconds."""
        return ts_ms // 1000 // self.size_s * self.size_s

    def is_kept(self, start_s: int, now_ms: int) -> bool:
        """Return whether a window that begins at `start_s` is to be kept at `now_ms`."""
        return (start_s + self.size_s + self.keep_s) * 1000 > now_ms


def size_of(name: str) -> int:
    """Return the seconds of a size such as `5m`; raises ValueError."""
    if re.fullmatch(SIZE, name) is None:
        raise ValueError("a size is a number with s, m, h or d, as in 5m")
    return int(name[:-1]) * SECONDS[name[-1]]


def coarser(finer: Mapping[int, Rollup], window: Window) -> dict[int, Rollup]:
    """Merge windows by start into those of a size that is a multiple of theirs.

    One that has a single finer window in it is that roll-up, which is not to be changed then.
    """
    parts: dict[int, list[Rollup]] = {}
    for start_s, rollup in finer.items():
        parts.setdefault(start_s // window.size_s * window.size_s, []).append(rollup)
    return {start_s: found[0] if len(found) == 1 else _merged(found) for start_s, found in parts.items()}


def _merged(rollups: Sequence[Rollup]) -> Rollup:
    made = Rollup()
    for rollup in rollups:
        made.merge(rollup)
    return made


def check_sizes(windows: Sequence[Window]) -> None:
    """Raise ValueError unless each size is a larger multiple of the one before, and kept no shorter."""
    for finer, next_ in itertools.pairwise(windows):
        if next_.size_s <= finer.size_s or next_.size_s % finer.size_s:
            raise ValueError(f"{next_.name} is not a multiple of {finer.name}")
        if next_.keep_s < finer.keep_s:
            raise ValueError(f"{next_.name} must be kept as long as {finer.name}")
