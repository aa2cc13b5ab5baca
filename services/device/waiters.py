"""Requests that wait for a shadow to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Key = tuple[str, str]


class Waiters:
    """Who waits for which device; at most `waiters_max` do, and all others are answered at once."""

    def __init__(self, waiters_max: int, draining: asyncio.Event) -> None:
        self._waiters_max = waiters_max
        self._draining = draining
        self._events: dict[Key, set[asyncio.Event]] = {}
        self._count = 0

    def let_go(self) -> None:
        """Wake everybody: the process ends. `draining` must be set."""
        for events in self._events.values():
            for event in events:
                event.set()

    def changed(self, tenant: str, device: str) -> None:
        """Wake who waits for a device."""
        for event in self._events.get((tenant, device), ()):
            event.set()

    async def wait(self, tenant: str, device: str, is_new: Callable[[], bool], deadline_s: float) -> None:
        """Wait until `is_new`, at most `deadline_s`, and no longer once the process ends."""
        if self._count >= self._waiters_max or self._draining.is_set():
            return
        event = asyncio.Event()
        waiting = self._events.setdefault((tenant, device), set())
        waiting.add(event)
        self._count += 1
        try:
            async with asyncio.timeout(deadline_s):
                while not is_new() and not self._draining.is_set():
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return
        finally:
            self._count -= 1
            waiting.discard(event)
            if not waiting:
                self._events.pop((tenant, device), None)
