"""One campaign: a node, a swarm, what happens to both, the ledger, and the verdict."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtests.campaign import local_sink, report
from loadtests.campaign.happenings import Happenings
from loadtests.campaign.promise import Evidence, judge, merged, quantile_ms
from loadtests.campaign.settings import local_db, settings_for, target_for
from loadtests.campaign.swarm import Swarm, SwarmError
from loadtests.ledger import Ledger, Verdict
from loadtests.million import machine
from loadtests.million.promise import Part
from loadtests.million.screen import Screen
from loadtests.node import Node, NodeError, Status, fetch, status_at
from loadtests.plan import Plan
from loadtests.target import Target
from loadtests.users.result import Result

DELIVERED_S: Final = 60.0
LOOK_S: Final = 0.5
HANDSHAKES: Final = re.compile(
    r'^headworks_tls_handshakes_failed_total\{reason="(\w+)"\} (\S+)$', re.MULTILINE
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a run, beside its plan."""

    name: str
    processes: int = 1
    remote: int = 0
    shard_max: int = 2000
    seed: int = 1
    web: str | None = None
    target: Target | None = None
    """A node that runs already."""
    local_db: Path | None = None
    """The file of that node's sink, if it can be read from here."""
    compiled: Path | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What came of it."""

    campaign: str
    kept: bool
    promise: list[Part]
    figures: dict[str, Any]
    report: str


class Run:
    """The driver of one campaign; everything it makes is in `folder`."""

    def __init__(self, plan: Plan, options: Options, *, folder: Path, screen: Screen) -> None:
        self._plan = plan
        self._options = options
        self._folder = folder
        self._screen = screen
        self._node: Node | None = None
        if options.target is None:
            self._node = Node(folder, workers=plan.node.workers, compiled=options.compiled)
            self._target = target_for(self._node)
        else:
            self._target = options.target
        self._sink = local_db(self._node) if self._node is not None else options.local_db
        self._swarm = Swarm(
            plan,
            self._target,
            folder,
            processes=options.processes,
            remote=options.remote,
            shard_max=options.shard_max,
            seed=options.seed,
            web=options.web,
        )

    async def run(self) -> Outcome:
        """Run it all."""
        parts: list[Part] = []
        figures: dict[str, Any] = {}
        node = self._node
        try:
            if node is not None:
                await self._prepare(node)
            evidence = await self._load(node)
            parts += judge(self._plan, evidence)
            figures = figures_of(evidence)
            if node is not None:
                code = await node.stop()
                parts.append(Part("the gateway drained", code == 0, f"exit code {code}"))
        except (NodeError, SwarmError) as error:
            parts.append(Part("the campaign runs", False, str(error)))
        finally:
            self._swarm.kill()
            if node is not None:
                await node.kill_all()
        kept = all(part.kept for part in parts)
        page = report.write(self._folder, self._options.name, self._plan, parts, figures)
        return Outcome(self._options.name, kept, parts, figures, str(page))

    async def _prepare(self, node: Node) -> None:
        plan = self._plan
        await node.make_pki()
        if any(group.credential == "revoked" for group in plan.groups):
            await node.make_revoked()
        node.write_settings(settings_for(plan, node, self._target))
        await node.start()
        for tenant in plan.tenants:
            on_plan = ("--plan", tenant.plan, "--config", str(node.settings))
            await node.command("tenants", "add", tenant.name, *on_plan)

    async def _load(self, node: Node | None) -> Evidence:
        plan = self._plan
        idle = machine.pss(node.pids) if node is not None else 0
        began_s = await self._swarm.start()
        if self._options.web is not None:
            self._screen.say(f"Locust's own page: http://{self._options.web}")
        happenings = Happenings(plan, node, self._screen.say) if node is not None else None
        grown = 0
        async with asyncio.TaskGroup() as tasks:
            happening = tasks.create_task(happenings.run(began_s)) if happenings is not None else None
            watching = tasks.create_task(self._watch(began_s))
            try:
                result = await self._swarm.result(plan.load_s + plan.settle_s)
            finally:
                watching.cancel()
                if happening is not None:
                    happening.cancel()
        if node is not None:
            grown = machine.pss(node.pids) - idle
        status = await self._delivered()
        return Evidence(
            result=result,
            verdict=await asyncio.to_thread(self._verdict, result),
            status=status,
            handshakes_failed=await asyncio.to_thread(self._handshakes_failed),
            restarted=happenings is not None and happenings.node_was_killed,
            spooled=happenings.spooled if happenings is not None else None,
            foreign=node is None,
            grown_mb=grown / 1e6 if node is not None else None,
        )

    async def _watch(self, began_s: float) -> None:
        """Show how it goes on."""
        loop = asyncio.get_running_loop()
        total = round(self._plan.load_s)
        self._screen.begin(self._options.name, total)
        while True:
            elapsed = min(total, round(loop.time() - began_s))
            status = await asyncio.to_thread(status_at, self._target.admin)
            note = (
                f"{status.connections:,} connections, {status.accepted:,} accepted"
                if status is not None
                else ""
            )
            self._screen.update(elapsed, total, note, loop.time())
            await asyncio.sleep(LOOK_S)

    async def _delivered(self) -> Status | None:
        """Wait until the gateway has delivered all, and return what it says."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + DELIVERED_S
        status = None
        while loop.time() < until_s:
            status = await asyncio.to_thread(status_at, self._target.admin)
            if status is not None and status.booked("delivered") == status.booked("accepted"):
                break
            await asyncio.sleep(LOOK_S)
        return status

    def _verdict(self, result: Result) -> Verdict | None:
        if self._sink is None:
            return None
        ledger = Ledger(row for rows in result.rows.values() for row in rows)
        ours = {(row.tenant, row.device) for rows in result.rows.values() for row in rows}
        for tenant, device, seq in local_sink.delivered(self._sink):
            if self._node is not None or (tenant, device) in ours:
                ledger.deliver((tenant, device), seq)
        return ledger.close()

    def _handshakes_failed(self) -> dict[str, int]:
        text = (fetch(f"http://{self._target.admin}/metrics") or b"").decode()
        return {reason: int(float(count)) for reason, count in HANDSHAKES.findall(text)}


def figures_of(evidence: Evidence) -> dict[str, Any]:
    """Return the figures that a person wants to see."""
    figures: dict[str, Any] = {"fleet": msgspec.to_builtins(evidence.result.figures)}
    if evidence.verdict is not None:
        verdict = msgspec.to_builtins(evidence.verdict)
        figures["ledger"] = {name: value for name, value in verdict.items() if isinstance(value, int)}
        figures["refused"] = verdict["refused"]
    for entry in sorted(evidence.result.measured, key=lambda entry: (entry.method, entry.name)):
        histogram = merged([entry])
        figures[f"{entry.method} {entry.name}"] = {
            "count": entry.count,
            "failed": entry.failures,
            "p50_ms": quantile_ms(histogram, 0.5),
            "p99_ms": quantile_ms(histogram, 0.99),
            "max_ms": round(entry.max_ms, 1),
        }
    figures["errors"] = evidence.result.errors
    if evidence.grown_mb is not None:
        figures["gateway"] = {"grown_mb": round(evidence.grown_mb, 1)}
    return figures
