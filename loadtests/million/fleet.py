"""The generators: starts them, tells them what to do, and adds up what they say."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

LINE_BYTES_MAX: Final = 1 << 20
REPORT_DEADLINE_S: Final = 120.0
END_DEADLINE_S: Final = 180.0

Histogram = list[tuple[int, int]]
"""Counts of what took at most so many microseconds, and more than the entry before."""


class Counts(msgspec.Struct, frozen=True):
    """What a generator has counted; times are of the monotonic clock, 0 for not yet."""

    up: int = 0
    opening: int = 0
    sent: int = 0
    acknowledged: int = 0
    resent: int = 0
    late: int = 0
    pings: int = 0
    lost: int = 0
    refused: int = 0
    retried: int = 0
    strange: int = 0
    back: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    dropped_s: float = 0.0
    last_back_s: float = 0.0
    latencies: Histogram | None = None
    latencies_max_us: int = 0
    waits: Histogram | None = None
    waits_max_us: int = 0


FIRST: Final = frozenset({"first_s"})
LAST: Final = frozenset({"last_s", "dropped_s", "last_back_s", "latencies_max_us", "waits_max_us"})
HISTOGRAMS: Final = frozenset({"latencies", "waits"})
SUMS: Final = frozenset(Counts.__struct_fields__) - FIRST - LAST - HISTOGRAMS


def add_up(all_counts: Sequence[Counts]) -> Counts:
    """Return the counts of all generators as those of one."""
    summed = {name: sum(getattr(counts, name) for counts in all_counts) for name in SUMS}
    lasts = {name: max((getattr(counts, name) for counts in all_counts), default=0) for name in LAST}
    firsts = [counts.first_s for counts in all_counts if counts.first_s]
    return Counts(
        **summed,
        **lasts,
        first_s=min(firsts, default=0.0),
        latencies=_merged(counts.latencies for counts in all_counts),
        waits=_merged(counts.waits for counts in all_counts),
    )


def _merged(histograms: Iterable[Histogram | None]) -> Histogram:
    merged: dict[int, int] = {}
    for histogram in histograms:
        for end_us, count in histogram or ():
            merged[end_us] = merged.get(end_us, 0) + count
    return sorted(merged.items())


def quantile_ms(histogram: Histogram | None, share: float) -> float:
    """Return below what `share` of the observations are, in ms, at most 3 % too high; 0 without any."""
    rank = share * sum(count for _, count in histogram or ())
    seen = 0
    for end_us, count in histogram or ():
        seen += count
        if seen >= rank:
            return end_us / 1000
    return 0.0


class Fleet:
    """The generator processes of one run, as one; `failed` hears of one that ends by itself."""

    def __init__(self, program: Path, shares: Sequence[tuple[int, int]], options: Sequence[str]) -> None:
        self._program = program
        self._shares = shares
        self._options = options
        self._processes: list[asyncio.subprocess.Process] = []
        self._counts = [Counts() for _ in shares]
        self._reports: list[Counts | None] = [None for _ in shares]
        self._reported = asyncio.Event()
        self._leaving = False
        self.failure = ""

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._processes]

    @property
    def counts(self) -> Counts:
        """What they have said last, added up."""
        return add_up(self._counts)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start them all: they connect at once."""
        for index, (first, count) in enumerate(self._shares):
            process = await asyncio.create_subprocess_exec(
                self._program,
                f"first={first}",
                f"count={count}",
                *self._options,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
            self._processes.append(process)
            tasks.create_task(self._listen(index, process))

    async def _listen(self, index: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        async for line in process.stdout:
            counts = msgspec.json.decode(line, type=Counts)
            if counts.latencies is not None:
                self._reports[index] = counts
                self._reported.set()
            self._counts[index] = counts
        code = await process.wait()
        if code or not self._leaving:
            words = (await process.stderr.read()).decode(errors="replace").strip()
            self.failure = self.failure or f"generator {index} ended with code {code}: {words}"
            self._reported.set()

    async def tell(self, command: str) -> None:
        """Give them all a command."""
        for process in self._processes:
            assert process.stdin is not None
            if process.returncode is None:
                process.stdin.write(f"{command}\n".encode())
                await process.stdin.drain()

    async def report(self) -> Counts:
        """Return their counts with the histograms since the last report."""
        self._reports = [None for _ in self._shares]
        await self.tell("report")
        async with asyncio.timeout(REPORT_DEADLINE_S):
            while not self.failure and None in self._reports:
                self._reported.clear()
                await self._reported.wait()
        return add_up([counts for counts in self._reports if counts is not None])

    async def leave(self) -> None:
        """Let every device say goodbye, and wait until the processes have ended."""
        self._leaving = True
        await self.tell("leave")
        async with asyncio.timeout(END_DEADLINE_S):
            for process in self._processes:
                await process.wait()

    def kill(self) -> None:
        """End them now, if they have not."""
        self._leaving = True
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
