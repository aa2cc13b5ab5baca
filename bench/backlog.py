"""A backlog that is drained while ingest goes on: whether it ends, and whether memory stays flat.

    python -m bench.backlog [--messages N] [--per-s N] [--growth-max-mib N] [--json]

One worker on core 0. While nothing answers as Kinesis, a generator on core 1 has `messages` spooled as fast
as it goes; then the stub of Kinesis takes whatever comes, and another generator goes on at a steady `per-s`.
The exit code is 1 where a part of the promise is broken: the backlog ends, what was acknowledged is
delivered, ingest keeps its pace, and the worker takes at most `growth-max-mib` more than when the drain
began.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from bench.side_by_side import measure, servers
from bench.side_by_side.cases import Case
from bench.side_by_side.contenders import COMPILED, Place, headworks
from bench.side_by_side.measure import Driven
from bench.side_by_side.servers import Server
from loadtests.node import Status, free_port

SPOOL_BYTES_MAX: Final = 64 << 30
SAMPLE_S: Final = 1.0
SAYS_EACH: Final = 5
DRAINS_PER_S_MIN: Final = 2_000
"""A drain that is slower than this is given up."""
EMPTY_DEADLINE_S: Final = 60.0
PACE_MIN: Final = 0.95
MIB: Final = 1 << 20
GROWTH_MAX_MIB: Final = 96
"""Three times what the sink holds by default: its parts, the calls made of them, and what malloc keeps."""
FILL: Final = Case(name="fill", title="", needs="mqtt", connections=100, window=64)
STEADY: Final = Case(name="steady", title="", needs="mqtt", connections=1000)


class Sample(msgspec.Struct, frozen=True):
    """The worker at one time, since the phase began."""

    at_s: float
    accepted: int
    delivered: int
    spooled: int
    memory_bytes: int


class Result(msgspec.Struct, frozen=True):
    """What a run gave. `lost` is what was acknowledged and not delivered."""

    messages: int
    per_s: int
    filled_per_s: float
    drained_s: float | None
    delivered_per_s: float
    accepted_per_s: float
    p50_ms: float
    p99_ms: float
    memory_before_bytes: int
    memory_full_bytes: int
    memory_min_bytes: int
    memory_max_bytes: int
    lost: int


def result(
    *,
    per_s: int,
    growing: Sequence[Sample],
    draining: Sequence[Sample],
    ended: bool,
    filled: Driven,
    steady: Driven,
) -> Result:
    """Return what the samples of both phases say; the last one of all is taken when ingest has ended."""
    first, last = draining[0], draining[-2]
    took_s = last.at_s - first.at_s
    memory = [sample.memory_bytes for sample in draining]
    return Result(
        messages=growing[-1].accepted - growing[0].accepted,
        per_s=per_s,
        filled_per_s=(growing[-1].accepted - growing[0].accepted) / (growing[-1].at_s - growing[0].at_s),
        drained_s=took_s if ended else None,
        delivered_per_s=(last.delivered - first.delivered) / took_s,
        accepted_per_s=(last.accepted - first.accepted) / took_s,
        memory_before_bytes=growing[0].memory_bytes,
        memory_full_bytes=growing[-1].memory_bytes,
        memory_min_bytes=min(memory),
        memory_max_bytes=max(memory),
        p50_ms=steady.p50_ms,
        p99_ms=steady.p99_ms,
        lost=max(0, filled.all + steady.all - draining[-1].delivered),
    )


def broken(of: Result, *, growth_max_bytes: int) -> list[str]:
    """Return in words which parts of the promise are broken."""
    words = []
    if of.drained_s is None:
        words.append("the backlog did not end")
    if of.lost:
        words.append(f"{of.lost:,} messages were acknowledged and not delivered")
    if of.accepted_per_s < PACE_MIN * of.per_s:
        words.append(f"ingest fell to {of.accepted_per_s:,.0f} of {of.per_s:,} messages/s")
    growth = of.memory_max_bytes - of.memory_full_bytes
    if growth > growth_max_bytes:
        words.append(f"memory grew by {growth / MIB:.0f} MiB, {growth_max_bytes / MIB:.0f} are allowed")
    return words


class Watch:
    """Samples a worker, and says now and then what it sees."""

    def __init__(self, server: Server, console: Console, phase: str) -> None:
        self._server = server
        self._console = console
        self._phase = phase
        self._began_s = time.monotonic()
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        """Take a sample."""
        assert self._server.admin is not None
        status = msgspec.json.decode(servers.fetched(self._server.admin, "/status"), type=Status)
        sample = Sample(
            time.monotonic() - self._began_s,
            status.booked("accepted"),
            status.booked("delivered"),
            status.booked("spooled"),
            self._server.memory_bytes(),
        )
        if len(self.samples) % SAYS_EACH == 0:
            self._say(sample)
        self.samples.append(sample)
        return sample

    def _say(self, sample: Sample) -> None:
        before = self.samples[-SAYS_EACH] if len(self.samples) >= SAYS_EACH else sample
        took_s = (sample.at_s - before.at_s) or 1.0
        self._console.print(
            f"{self._phase} {sample.at_s:5.0f} s: {sample.spooled:>10,} spooled, "
            f"in {(sample.accepted - before.accepted) / took_s:>9,.0f}/s, "
            f"out {(sample.delivered - before.delivered) / took_s:>9,.0f}/s, "
            f"{sample.memory_bytes / MIB:6.1f} MiB",
            highlight=False,
            soft_wrap=True,
        )


def fill(server: Server, program: Path, messages: int, console: Console) -> tuple[list[Sample], Driven]:
    """Have so many messages spooled; return the samples, and what the generator says."""
    watch = Watch(server, console, "filling ")
    with _generator(server, program, FILL, f"messages={messages}") as generator:
        generator.began()
        watch.look()
        while generator.alive:
            time.sleep(SAMPLE_S)
            watch.look()
        driven = generator.ended()
    return watch.samples, driven


def drain(server: Server, program: Path, per_s: int, console: Console) -> tuple[list[Sample], bool, Driven]:
    """Let it drain beside steady ingest; return the samples, whether it ended, and the generator's word."""
    with _generator(server, program, STEADY, f"per_s={per_s}") as generator:
        generator.began()
        watch = Watch(server, console, "draining")
        deadline_s = watch.look().spooled / DRAINS_PER_S_MIN
        ended = False
        while not ended and watch.samples[-1].at_s < deadline_s:
            time.sleep(SAMPLE_S)
            ended = watch.look().spooled <= per_s  # a second of ingest is always under way
        driven = generator.stop()
    until_s = watch.samples[-1].at_s + EMPTY_DEADLINE_S
    while (last := watch.look()).spooled and last.at_s < until_s:
        watch.samples.pop()
        time.sleep(SAMPLE_S)
    return watch.samples, ended, driven


def _generator(server: Server, program: Path, case: Case, more: str) -> measure.Generator:
    given = measure.options(case, server, pki=program.parent / "pki", seconds=0, share=0, shares=1)
    return measure.Generator(program, servers.LOAD_CORE, [*given, "warm_up_s=0", more])


def run(messages: int, per_s: int, console: Console) -> Result:
    """Fill a spool and drain it."""
    # On the disk that the project is on: /tmp may be memory, where an fsync costs nothing.
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=servers.scratch()))).resolve()
        program = measure.build(folder)
        servers.pki(folder)
        port = free_port()
        node = headworks(
            Place(folder, "0", tls=False, workers=1, stub=None),
            compiled=True,
            spool_bytes_max=SPOOL_BYTES_MAX,
            sink_port=port,
        )
        server = stack.enter_context(node)
        growing, filled = fill(server, program, messages, console)
        stack.enter_context(servers.kinesis(folder, port=port))
        draining, ended, steady = drain(server, program, per_s, console)
    return result(per_s=per_s, growing=growing, draining=draining, ended=ended, filled=filled, steady=steady)


def main() -> int:
    """Run it, say what came of it, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=5_000_000)
    parser.add_argument("--per-s", type=int, default=20_000)
    parser.add_argument("--growth-max-mib", type=int, default=GROWTH_MAX_MIB)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not COMPILED.exists():
        raise SystemExit("run make compiled first")
    of = run(options.messages, options.per_s, Console(stderr=True))
    words = broken(of, growth_max_bytes=options.growth_max_mib * MIB)
    if options.json:
        print(msgspec.json.encode({**msgspec.to_builtins(of), "broken": words}).decode())
    else:
        say(of, words)
    return 1 if words else 0


def say(of: Result, words: Sequence[str]) -> None:
    """Print what a run gave."""
    ended = "did not end" if of.drained_s is None else f"drained in {of.drained_s:.0f} s"
    memory = (of.memory_before_bytes, of.memory_full_bytes, of.memory_min_bytes, of.memory_max_bytes)
    before, full, least, most = (f"{size / MIB:.0f} MiB" for size in memory)
    print(f"{of.messages:,} messages spooled at {of.filled_per_s:,.0f}/s; {ended}")
    print(f"meanwhile {of.delivered_per_s:,.0f}/s delivered, {of.accepted_per_s:,.0f}/s accepted,", end=" ")
    print(f"acknowledged after {of.p50_ms:.0f} ms (p50), {of.p99_ms:.0f} ms (p99)")
    print(f"memory of the worker: {before} before, {full} with the backlog, then {least} to {most}")
    print("The promise is kept." if not words else f"The promise is broken: {'; '.join(words)}.")


if __name__ == "__main__":
    sys.exit(main())
