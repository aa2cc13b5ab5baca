"""One run: start, connect, hold, storm, leave; the figures of each, and whether the promise was kept."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtests.million import machine, promise
from loadtests.million.fleet import Counts, Fleet, Histogram, quantile_ms
from loadtests.million.machine import Cpu, Snapshot
from loadtests.million.node import Node, connections_max
from loadtests.million.promise import Part
from loadtests.million.screen import Screen
from loadtests.node import NodeError, Status

LOOK_S: Final = 0.5
WARM_UP_PERIODS: Final = 0.5
"""How long devices publish before it counts, when each has sent its first message."""
ANSWERS_S: Final = 30.0
DELIVERED_S: Final = 60.0
SPREAD: Final = 6
"""Connections land on workers by chance: standard deviations of room above the mean."""
LINGER_S: Final = 0.125
LINGERING_WORKERS_MIN: Final = 5
"""With many workers a core, turns of a few messages each would cost more than the messages."""
GENERATOR_DESCRIPTORS: Final = 100
OPENING_MAX: Final = 100
OPENING_TLS_MAX: Final = 30
TICK_US: Final = 5000
MANY_GENERATORS: Final = 8
TICK_OF_MANY_US: Final = 20_000
"""Generators look once a tick; with many of them on few cores, looking would cost more than what is there."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a run."""

    devices: int
    hold_s: float
    period_s: float
    keep_alive_s: int
    tenants: int
    workers: int
    tls: bool
    storm: bool
    back_off_s: float
    storm_s: float
    p99_ms: float
    stall_s: float
    sink: str
    linger_s: float
    settings: str
    compiled: Path | None


class Outcome(msgspec.Struct, frozen=True):
    """What came of it."""

    kept: bool
    promise: list[Part]
    figures: dict[str, Any]


def workers_for(devices: int, descriptors: int, cores: int) -> int:
    """Return how many workers it takes so that none has more connections than descriptors."""
    workers = cores
    while True:
        mean = devices / workers
        if mean + SPREAD * math.sqrt(mean) <= connections_max(descriptors, workers):
            return workers
        workers += 1


def shares_of(devices: int, descriptors: int) -> list[tuple[int, int]]:
    """Return (first device, number of devices) of each generator."""
    count = math.ceil(devices / (descriptors - GENERATOR_DESCRIPTORS))
    starts = [devices * index // count for index in range(count + 1)]
    return [(start, end - start) for start, end in itertools.pairwise(starts)]


class Run:
    """The driver of one run."""

    def __init__(
        self, options: Options, *, folder: Path, program: Path, descriptors: int, cores: int, screen: Screen
    ) -> None:
        self._options = options
        self._program = program
        self._screen = screen
        self._workers = options.workers or workers_for(options.devices, descriptors, cores)
        self._shares = shares_of(options.devices, descriptors)
        self._node = Node(
            folder,
            devices=options.devices,
            workers=self._workers,
            descriptors=descriptors,
            linger_s=options.linger_s if options.linger_s >= 0 else self._linger_s(),
            compiled=options.compiled,
        )
        self._fleet = Fleet(program, self._shares, self._fleet_options())
        self._parts: list[Part] = []
        self._figures: dict[str, Any] = {}

    def _linger_s(self) -> float:
        return LINGER_S if self._workers >= LINGERING_WORKERS_MIN else 0.0

    def _fleet_options(self) -> list[str]:
        options = self._options
        values: dict[str, object] = {
            "port": self._node.port,
            "tenants": options.tenants,
            "period_s": options.period_s,
            "keep_alive_s": options.keep_alive_s,
            "tick_us": TICK_US if len(self._shares) <= MANY_GENERATORS else TICK_OF_MANY_US,
            "opening_max": OPENING_TLS_MAX if options.tls else OPENING_MAX,
        }
        if options.tls:
            values |= {"ca": self._node.ca, "ca_key": self._node.ca_key}
        return [f"{name}={value}" for name, value in values.items()]

    async def run(self) -> Outcome:
        """Run it all."""
        options = self._options
        # The shortest pause between two messages is half a period; twice that rate is a limit with some room.
        device_per_s = max(1.0, 4 / options.period_s)
        try:
            await self._node.prepare(
                sink=options.sink, device_per_s=device_per_s, tls=options.tls, more=options.settings
            )
            before = machine.snapshot([], [])
            start_s = await self._node.start()
            self._figures["run"] = {
                "devices": options.devices,
                "workers": self._workers,
                "generators": len(self._shares),
                "compiled": options.compiled is not None,
                "tls": options.tls,
                "sink": options.sink,
                "start_s": start_s,
            }
            async with asyncio.TaskGroup() as tasks:
                await self._with_fleet(tasks, before)
            self._parts += promise.of_draining(await self._node.stop())
        except NodeError as error:
            self._parts.append(Part("the gateway runs", False, str(error)))
        finally:
            self._fleet.kill()
            self._node.kill()
        return Outcome(all(part.kept for part in self._parts), self._parts, self._figures)

    async def _with_fleet(self, tasks: asyncio.TaskGroup, before: Snapshot) -> None:
        idle = machine.snapshot(self._node.pids, [])
        await self._fleet.start(tasks)
        try:
            connected = await self._connect()
            if connected and await self._hold(before, idle) and self._options.storm:
                await self._storm()
            await self._settle()
            await self._fleet.leave()
        finally:
            self._fleet.kill()
        if self._fleet.failure:
            self._parts.append(Part("the generators run", False, self._fleet.failure))

    # Phases.

    async def _connect(self) -> bool:
        devices = self._options.devices
        started = self._cpu()
        await self._watch(
            "connecting", devices, lambda counts: counts.up, lambda counts: f"{counts.retried:,} retried"
        )
        counts = (await self._fleet.report()) if not self._fleet.failure else self._fleet.counts
        took_s = counts.last_s - counts.first_s
        self._figures["connect"] = {
            "seconds": took_s,
            "per_s": counts.up / took_s if took_s > 0 else 0.0,
            "retried": counts.retried,
            "refused": counts.refused,
            **_cpu_between(started, self._cpu()),
        }
        parts = promise.of_connecting(devices, counts)
        self._parts += parts
        return all(part.kept for part in parts)

    async def _hold(self, before: Snapshot, idle: Snapshot) -> bool:
        options = self._options
        connected = self._snapshot()
        self._figures["memory_connected"] = self._memory(before, idle, connected)
        await self._introduce()
        await self._fleet.tell("publish")
        await self._publish_for("warming up", WARM_UP_PERIODS * options.period_s)
        await self._fleet.report()  # the histogram begins anew
        started = self._cpu()
        base = self._fleet.counts
        elapsed_s = await self._publish_for("holding", options.hold_s)
        ended = self._cpu()
        sent, pings = self._fleet.counts.sent - base.sent, self._fleet.counts.pings - base.pings
        counts = await self._quiet()
        status = await self._node.status()
        held = self._snapshot()  # it stops each process for a moment, so nobody is timed meanwhile
        self._figures["memory_published"] = self._memory(before, idle, held)
        self._figures["hold"] = {
            "seconds": elapsed_s,
            "sent_per_s": sent / elapsed_s,
            "pings_per_s": pings / elapsed_s,
            "late": counts.late,
            **_cpu_between(started, ended),
        }
        self._figures["acknowledged_ms"] = _quantiles(counts.latencies, counts.latencies_max_us, unit=1.0)
        if status is not None and status.acknowledge_p99_s is not None:
            self._figures["acknowledged_ms"]["p99_in_the_gateway"] = status.acknowledge_p99_s * 1000
        parts = promise.of_holding(options.devices, counts, status, p99_ms=options.p99_ms)
        self._parts += parts
        return self._well()

    async def _introduce(self) -> None:
        """Let each device send its first message, which costs several times what the others do."""
        devices = self._options.devices
        loop = asyncio.get_running_loop()
        started, began_s = self._cpu(), loop.time()
        await self._fleet.tell("introduce")
        await self._watch(
            "first messages",
            devices,
            lambda counts: counts.acknowledged,
            lambda counts: f"{counts.lost:,} lost",
        )
        seconds = loop.time() - began_s
        self._figures["first_messages"] = {
            "seconds": seconds,
            "sent_per_s": self._fleet.counts.sent / seconds,
            **_cpu_between(started, self._cpu()),
        }

    async def _publish_for(self, what: str, seconds: float) -> float:
        """Show how messages come and go for so long, and return for how long it was."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._screen.begin(what, round(seconds))
        while (elapsed_s := loop.time() - began_s) < seconds and self._well():
            counts = self._fleet.counts
            note = f"{counts.sent:,} sent, {counts.acknowledged:,} acknowledged, {counts.lost:,} lost"
            self._screen.update(round(elapsed_s), round(seconds), note, loop.time())
            await asyncio.sleep(LOOK_S)
        return elapsed_s

    async def _storm(self) -> None:
        options = self._options
        loop = asyncio.get_running_loop()
        await self._fleet.tell("publish")
        await asyncio.sleep(min(5.0, options.period_s))
        lost = self._fleet.counts.lost
        started = self._cpu()
        await self._fleet.tell(f"drop {options.back_off_s}")
        await self._watch(
            "returning",
            options.devices,
            lambda counts: counts.back,
            lambda counts: f"{counts.up:,} connected, {counts.retried:,} tried again",
            until_s=loop.time() + 2 * options.storm_s,
        )
        ended = self._cpu()
        counts = await self._quiet()
        counts = msgspec.structs.replace(counts, lost=counts.lost - lost)
        took_s = counts.last_back_s - counts.dropped_s
        self._figures["storm"] = {
            "back_off_s": options.back_off_s,
            "last_served_s": took_s,
            "per_s": counts.back / took_s if took_s > 0 else 0.0,
            "sent_again": counts.resent,
            **_cpu_between(started, ended),
        }
        self._figures["storm_wait_s"] = _quantiles(counts.waits, counts.waits_max_us, unit=1e-3)
        self._parts += promise.of_returning(options.devices, counts, within_s=options.storm_s)

    async def _settle(self) -> None:
        """Wait until all is delivered, and judge the sums."""
        if not self._well():
            self._parts.append(Part("the sums", False, self._fleet.failure or "the gateway has ended"))
            return
        counts = await self._quiet()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        status: Status | None = None
        while loop.time() - began_s < DELIVERED_S:
            status = await self._node.status()
            if status is not None and status.delivered == status.accepted == status.booked("delivered"):
                break
            await asyncio.sleep(LOOK_S)
        self._figures["ledger"] = {
            "sent": counts.sent,
            "acknowledged": counts.acknowledged,
            "sent_again": counts.resent,
            "accepted": status.booked("accepted") if status is not None else 0,
            "delivered": status.booked("delivered") if status is not None else 0,
            "delivered_after_s": loop.time() - began_s,
        }
        self._parts += promise.of_ledger(counts, status)

    # Steps.

    def _well(self) -> bool:
        return not self._fleet.failure and self._node.alive

    async def _watch(
        self,
        what: str,
        total: int,
        progress: Callable[[Counts], int],
        note: Callable[[Counts], str],
        *,
        until_s: float = math.inf,
    ) -> None:
        """Show how something comes to its end, until it has, or stalls."""
        loop = asyncio.get_running_loop()
        best, best_s = -1, loop.time()
        self._screen.begin(what, total)
        while self._well() and loop.time() < until_s and loop.time() - best_s < self._options.stall_s:
            counts = self._fleet.counts
            done = progress(counts)
            self._screen.update(done, total, note(counts), loop.time())
            if done > best:
                best, best_s = done, loop.time()
            if done >= total:
                return
            await asyncio.sleep(LOOK_S)

    async def _quiet(self) -> Counts:
        """Let nobody publish, wait for the answers that are still owed, and return the counts."""
        await self._fleet.tell("quiet")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + ANSWERS_S
        await asyncio.sleep(1.1)  # a count later than the last message
        while self._well() and loop.time() < until_s:
            counts = self._fleet.counts
            if counts.sent == counts.acknowledged:
                break
            await asyncio.sleep(LOOK_S)
        return await self._fleet.report()

    def _snapshot(self) -> Snapshot:
        return machine.snapshot(self._node.pids, self._fleet.pids)

    def _cpu(self) -> Cpu:
        now_s = asyncio.get_running_loop().time()
        return machine.cpu(now_s, self._node.pids, self._fleet.pids)

    def _memory(self, before: Snapshot, idle: Snapshot, now: Snapshot) -> dict[str, float]:
        """Return the memory a connection in KB; of the gateway with and without what it takes alone."""
        devices = 1000 * self._options.devices
        return {
            "gateway_kb": (now.gateway - idle.gateway) / devices,
            "gateway_in_all_kb": now.gateway / devices,
            "generators_kb": now.generators / devices,
            "kernel_kb": (now.kernel - idle.kernel) / devices,
            "machine_kb": (before.available - now.available) / devices,
            "gateway_alone_mb": idle.gateway / 1e6,
        }


def _cpu_between(start: Cpu, end: Cpu) -> dict[str, float]:
    """Return how many cores were busy, on average."""
    seconds = max(0.001, end.at_s - start.at_s)
    return {
        "cores_gateway": (end.gateway_s - start.gateway_s) / seconds,
        "cores_generators": (end.generators_s - start.generators_s) / seconds,
        "cores_busy": (end.busy_s - start.busy_s) / seconds,
    }


def _quantiles(histogram: Histogram | None, max_us: int, *, unit: float) -> dict[str, float]:
    return {
        "p50": quantile_ms(histogram, 0.5) * unit,
        "p99": quantile_ms(histogram, 0.99) * unit,
        "max": max_us / 1000 * unit,
    }
