"""A budget for retries: a share of what is asked, so that trouble is not multiplied."""

from __future__ import annotations

from typing import Final

SLOTS: Final = 10


class Budget:
    """Counts requests and retries of the last `window_s` in tenths of it.

    There may be `share` retries for each request, and `min_per_s` for each second of the window beside them.
    """

    def __init__(self, *, share: float, min_per_s: float, window_s: float, now_s: float) -> None:
        assert 0 <= share <= 1
        assert min_per_s >= 0
        assert window_s > 0
        self._share = share
        self._always = min_per_s * window_s
        self._slot_s = window_s / SLOTS
        self._slot = int(now_s / self._slot_s)
        self._requests = [0] * SLOTS
        self._retries = [0] * SLOTS
        self._requests_sum = 0
        self._retries_sum = 0

    def asked(self, now_s: float) -> None:
        """Count a request, not a retry of one."""
        self._forget(now_s)
        self._requests[self._slot % SLOTS] += 1
        self._requests_sum += 1

    def take(self, now_s: float) -> bool:
        """Return whether one more retry may be made, and count it if so."""
        self._forget(now_s)
        if self._retries_sum + 1 > self._share * self._requests_sum + self._always:
            return False
        self._retries[self._slot % SLOTS] += 1
        self._retries_sum += 1
        return True

    def _forget(self, now_s: float) -> None:
        slot = int(now_s / self._slot_s)
        for each in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
            at = each % SLOTS
            self._requests_sum -= self._requests[at]
            self._retries_sum -= self._retries[at]
            self._requests[at] = self._retries[at] = 0
        self._slot = max(self._slot, slot)
