"""One run: the generator drives a server, whose CPU, memory and deliveries are read in the middle of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from bench.side_by_side.cases import Case, Cores
from bench.side_by_side.figures import Run
from bench.side_by_side.servers import Server, Taken

SOURCES: Final = Path(__file__).with_name("generator")
FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
LIBRARIES: Final = ("-lssl", "-lcrypto")
WARM_UP_S: Final = 0.7
EDGE_S: Final = 0.15
"""CPU is counted a little after the generator begins to count, and until a little before it ends."""
SETTLE_S: Final = 1.0
END_DEADLINE_S: Final = 60.0


class Driven(msgspec.Struct, frozen=True):
    """What a generator says in the end. `busy` is the share of its time that it used the CPU for."""

    per_s: float
    p50_ms: float
    p99_ms: float
    resumed: float
    busy: float
    all: int


def build(folder: Path) -> Path:
    """Compile the generator."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("there is no C compiler: install gcc")
    program = folder / "load"
    command = [compiler, *FLAGS, "-o", str(program), *map(str, sorted(SOURCES.glob("*.c"))), *LIBRARIES]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(
            "the generator cannot be compiled; TLS needs the headers of OpenSSL 3: install libssl-dev"
        )
    return program


def options(case: Case, server: Server, *, pki: Path, seconds: float, share: int, shares: int) -> list[str]:
    """Return what a generator is told, that has one of so many shares of the connections."""
    speaks = "mqtts" if case.tls else case.speaks
    connections = case.connections // shares
    given: dict[str, object] = {
        "port": server.ports[speaks],
        "speaks": case.speaks,
        "does": case.does,
        "connections": connections,
        "first": share * max(connections, case.devices),
        "devices": case.devices,
        "window": case.window,
        "list": case.list,
        "frames": case.frames,
        "seconds": seconds,
        "warm_up_s": 0 if case.held else WARM_UP_S,
    }
    if case.tls:
        given |= {"ca": pki / "ca.crt", "ca_key": pki / "ca.key"}
    return [f"{name}={value}" for name, value in given.items()]


class Generator:
    """A generator process on a core of its own."""

    def __init__(self, program: Path, core: str, options: Sequence[str]) -> None:
        command = ["taskset", "-c", core, str(program), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        with self._process:  # closes its pipes, and waits
            pass

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def began(self) -> None:
        """Wait until it counts."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit("the generator failed")

    def stop(self) -> Driven:
        """Tell it to end, and return what it has counted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.ended()

    def ended(self) -> Driven:
        """Wait for its end, and return what it has counted."""
        assert self._process.stdout is not None
        said = self._process.stdout.readlines()
        if self._process.wait(END_DEADLINE_S) or not said:
            raise SystemExit("the generator failed")
        return msgspec.json.decode(said[-1], type=Driven)


def held_bytes(server: Server, program: Path, core: str, given: Sequence[str], connections: int) -> Run:
    """Return what one idle connection takes of the memory of a server."""
    before = server.memory_bytes()
    with Generator(program, core, given) as generator:
        generator.began()
        time.sleep(SETTLE_S)
        took = server.memory_bytes() - before
        generator.stop()
    return {"connection_bytes": took / connections}


class _Sample(msgspec.Struct, frozen=True):
    at_s: float
    cpu_s: tuple[float, float]
    delivered: int
    taken: Taken


def _sample(server: Server) -> _Sample:
    delivered, taken = (server.delivered(), server.stub.taken()) if server.stub is not None else (0, Taken())
    return _Sample(time.monotonic(), server.cpu_s(), delivered, taken)


def driven(
    server: Server, program: Path, cores: Cores, given: Sequence[Sequence[str]], seconds: float
) -> Run:
    """Return the figures of a server under load. CPU is microseconds a message, or a connection."""
    with contextlib.ExitStack() as stack:
        generators = [
            stack.enter_context(Generator(program, core, each))
            for core, each in zip(cores.load, given, strict=True)
        ]
        for generator in generators:
            generator.began()
        time.sleep(EDGE_S)
        early = _sample(server)
        time.sleep(seconds - 2 * EDGE_S)
        late = _sample(server)
        ends = [generator.ended() for generator in generators]
    return figures(early, late, ends)


def figures(early: _Sample, late: _Sample, ends: Sequence[Driven]) -> Run:
    """Return the figures of what was seen between two samples, and of what the generators say."""
    took_s = late.at_s - early.at_s
    per_s = sum(end.per_s for end in ends)
    user_us, kernel_us = (
        1e6 * (after - before) / (per_s * took_s)
        for after, before in zip(late.cpu_s, early.cpu_s, strict=True)
    )
    run = {
        "per_s": per_s,
        "p50_ms": max(end.p50_ms for end in ends),
        "p99_ms": max(end.p99_ms for end in ends),
        "resumed": ends[0].resumed,
        "busy": max(end.busy for end in ends),
        "user_us": user_us,
        "kernel_us": kernel_us,
        "cpu_us": user_us + kernel_us,
    }
    delivered = late.delivered - early.delivered
    if delivered:
        run["delivered_per_s"] = delivered / took_s
        run["records_a_message"] = (late.taken.records - early.taken.records) / delivered
    return run


def measured(server: Server, program: Path, case: Case, cores: Cores, *, pki: Path, seconds: float) -> Run:
    """Return the figures of a case."""
    shares = len(cores.load)
    given = [
        options(case, server, pki=pki, seconds=0 if case.held else seconds, share=share, shares=shares)
        for share in range(shares)
    ]
    if case.held:
        return held_bytes(server, program, cores.load[0], given[0], case.connections)
    return driven(server, program, cores, given, seconds)
