"""Polls a source and hands on what it finds, for as long as it is not cancelled.

The last good copy holds while polls fail: nothing is handed on then. Failures in a row are asked about less
often, up to eight times the period, since a service that throttles wants fewer calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from routing.balancing.policy import Random
from routing.discovery.source import DiscoveryError, Found, Source

SLOWER_MAX: Final = 8


class Heard(Protocol):
    """Who is told how discovery fares."""

    def discovery_failed(self, upstream: str, why: str, *, first: bool) -> None:
        """Hear that a poll failed, for the first time in a row or again."""

    def discovery_recovered(self, upstream: str) -> None:
        """Hear that a poll succeeded after some that failed."""


class Watcher:
    """The driver of one source."""

    def __init__(
        self,
        upstream: str,
        source: Source,
        *,
        poll_s: float,
        deadline_s: float,
        found: Callable[[Found], None],
        heard: Heard,
        random: Random,
    ) -> None:
        self._upstream = upstream
        self._source = source
        self._poll_s = poll_s
        self._deadline_s = deadline_s
        self._found = found
        self._heard = heard
        self._random = random
        self._revision: str | None = None
        self.failures = 0

    async def run(self) -> None:
        """Poll at once and then each period, spread by a tenth, so that many gateways do not ask together."""
        try:
            while True:
                await self.poll()
                await asyncio.sleep(pause_s(self.failures, self._poll_s, self._random))
        finally:
            async with asyncio.timeout(self._deadline_s):
                await self._source.close()

    async def poll(self) -> None:
        """Ask once, and hand on what is new."""
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._source.poll()
        except (DiscoveryError, TimeoutError) as error:
            self.failures += 1
            why = str(error) or f"no answer in {self._deadline_s:g} s"
            self._heard.discovery_failed(self._upstream, why, first=self.failures == 1)
            return
        if self.failures:
            self.failures = 0
            self._heard.discovery_recovered(self._upstream)
        if found.revision != self._revision:
            self._revision = found.revision
            self._found(found)


def pause_s(failures: int, poll_s: float, random: Random) -> float:
    """Return how long to wait after so many failures in a row."""
    slower = min(SLOWER_MAX, 2.0 ** max(0, min(failures, 32) - 1))
    return poll_s * slower * (0.9 + 0.2 * random())
