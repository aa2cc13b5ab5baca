"""`python -m loadtests.campaign NAME`: see docs/guides/load.md.

Exit codes: 0 the promise holds, 1 it does not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from loadtests import plan as plans
from loadtests.campaign.run import Options, Outcome, Run
from loadtests.million import machine
from loadtests.million.screen import Screen, figures_table, promise_table
from loadtests.plan import ON_THE_FLEET, Plan, PlanError
from loadtests.target import Target, split

KEPT: Final = 0
BROKEN: Final = 1
WRONG_USE: Final = 2
WIDTH: Final = 160
"""Of what is printed into a file."""
WEB: Final = "127.0.0.1:8089"


def main() -> int:
    """Run from the command line and return the exit code."""
    parser = _parser()
    values = parser.parse_args()
    console = Console(stderr=values.json)
    if not console.is_terminal:
        console.width = WIDTH
    names = plans.names() if values.campaigns == ["all"] else values.campaigns
    if not names:
        console.print(_list(), highlight=False)
        return KEPT
    try:
        todo = [(Path(name).stem, _plan(name, values)) for name in names]
    except (PlanError, ValueError) as error:
        console.print(f"campaign: {error}", style="red", highlight=False, markup=False)
        return WRONG_USE
    machine.raise_descriptors()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nobody is left behind
    outcomes = [_run(name, plan, values, console) for name, plan in todo]
    if len(outcomes) > 1:
        console.print(_summary(outcomes), highlight=False)
    return KEPT if all(outcome.kept for outcome in outcomes) else BROKEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="campaign", description="Run a campaign with Locust, and judge it.")
    parser.add_argument(
        "campaigns", nargs="*", metavar="NAME", help="a name, a path, or all; none lists them"
    )
    parser.add_argument("--devices", type=int, help="as many in all, in the proportions of the campaign")
    parser.add_argument("--duration", type=float, help="seconds of load; stages and events move with it")
    parser.add_argument("--period", type=float, help="seconds between readings, for all groups")
    parser.add_argument("--p99-ms", type=float, help="another promise of latency")
    parser.add_argument("--headless", action="store_true", help="without Locust's page, as is the default")
    parser.add_argument(
        "--web", nargs="?", const=WEB, metavar="HOST:PORT", help=f"with Locust's page, at {WEB}"
    )
    parser.add_argument("--processes", type=int, default=1, help="Locust workers on this machine")
    parser.add_argument("--remote", type=int, default=0, help="Locust workers of other machines to wait for")
    parser.add_argument("--shard", type=int, default=2000, help="devices that one user drives at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", metavar="HOST", help="a node that runs already, instead of one's own")
    for field in Target.__struct_fields__:
        parser.add_argument(
            f"--to-{field}", help=argparse.SUPPRESS if field != "mqtt" else "ports of the target ..."
        )
    parser.add_argument("--local-db", type=Path, help="local.db of the target, for the ledger")
    parser.add_argument("--compiled", type=Path, help="run the gateway that is installed here")
    parser.add_argument("--folder", type=Path, default=Path("var/campaigns"))
    parser.add_argument("--json", action="store_true", help="an outcome a line on standard output")
    return parser


def _plan(name: str, values: argparse.Namespace) -> Plan:
    if (
        (values.devices is not None and values.devices < 1)
        or (values.duration or 1) <= 0
        or (values.period or 1) <= 0
    ):
        raise ValueError("--devices, --duration and --period must be above 0")
    if values.processes < 1 or values.remote < 0 or values.shard < 1:
        raise ValueError("--processes and --shard must be above 0")
    if values.headless and values.web:
        raise ValueError("--headless or --web, not both")
    plan = plans.load(name).scaled(devices=values.devices, load_s=values.duration, period_s=values.period)
    if values.p99_ms is not None:
        plan = msgspec.structs.replace(
            plan, promise=msgspec.structs.replace(plan.promise, p99_ms=values.p99_ms)
        )
    if values.target is not None:
        _target(values)
        if happenings := sorted({event.what for event in plan.events} - ON_THE_FLEET):
            raise ValueError(
                f"{name}: {happenings[0]} happens to a node of one's own only, not to a --target"
            )
    return plan


def _target(values: argparse.Namespace) -> Target | None:
    if values.target is None:
        return None
    fields = {}
    for field, default in msgspec.structs.asdict(Target()).items():
        given = getattr(values, f"to_{field}")
        if field != "pki":
            given = given or f"{values.target}:{split(default)[1]}"
            split(given)
        fields[field] = given or default
    return Target(**fields)


def _run(name: str, plan: Plan, values: argparse.Namespace, console: Console) -> Outcome:
    folder = (values.folder / name).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = Options(
        name=name,
        processes=values.processes,
        remote=values.remote,
        shard_max=values.shard,
        seed=values.seed,
        web=values.web,
        target=_target(values),
        local_db=values.local_db,
        compiled=values.compiled.resolve() if values.compiled else None,
    )
    console.print(f"{name}: {plan.what}", style="bold", highlight=False, markup=False)
    with Screen(console) as screen:
        outcome = asyncio.run(Run(plan, options, folder=folder, screen=screen).run())
    console.print(figures_table(outcome.figures), highlight=False)
    console.print(promise_table(outcome.promise), highlight=False)
    console.print(f"report: {outcome.report}", highlight=False, markup=False)
    if values.json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
        sys.stdout.flush()
    return outcome


def _list() -> Table:
    table = Table(box=None, show_header=False)
    for name in plans.names():
        table.add_row(name, plans.load(name).what)
    return table


def _summary(outcomes: list[Outcome]) -> Table:
    table = Table(title="All campaigns", box=None, show_header=False, title_justify="left")
    for outcome in outcomes:
        broken = [part.what for part in outcome.promise if not part.kept]
        table.add_row(
            "[green]kept[/]" if outcome.kept else "[red]BROKEN[/]", outcome.campaign, ", ".join(broken)
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
