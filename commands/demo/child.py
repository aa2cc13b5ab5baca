"""A process of the development node: started with a log, awaited until it answers, and stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from runtime import clock

START_DEADLINE_S: Final = 30.0
POLL_S: Final = 0.1


class Child:
    """One `headworks` command as a process; Ctrl-C is for its parent to handle."""

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name = name
        self._words = words
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, ready: Callable[[], Awaitable[bool]]) -> None:
        """Start it and wait until it is ready; raises `RuntimeError` with its last words."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "commands.cli",
                *self._words,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        until_s = clock.monotonic_s() + START_DEADLINE_S
        while clock.monotonic_s() < until_s and self._process.returncode is None:
            if await ready():
                return
            await asyncio.sleep(POLL_S)
        words = self._log.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"{self.name}: {words[0] if words else 'it did not become ready'}")

    async def stop(self) -> int:
        """Let it drain; return its exit code."""
        if self._process is None:
            return 1
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()
