"""The figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group
from rich.table import Table

from bench.side_by_side.cases import KIB, Case, Target
from bench.side_by_side.figures import Row, Verdict

WIDTH: Final = 150
ABSENT: Final = "-"
BUSY_MAX: Final = 0.95
WORDS: Final = {
    "per_s": "{case}",
    "delivered_per_s": "{case}: delivered",
    "records_a_message": "{case}: Kinesis records a message",
    "connection_bytes": "{case}",
}


def number(value: float | None, places: int = 0) -> str:
    """Return a number with separators, or what stands for none."""
    return ABSENT if value is None else f"{value:,.{places}f}"


def loads(rows: Sequence[Row], cases: Sequence[Case]) -> Table:
    """Return the table of rates."""
    titles = {case.name: f"{case.title} ({case.unit}/s)" for case in cases if not case.held}
    table = Table(
        title="Telemetry of 105 bytes, QoS 1, a core for the server; x: times Mosquitto's",
        box=None,
        pad_edge=False,
    )
    for title in ("", "each s", "x", "p50 ms", "p99 ms", "us user", "us kernel", "x CPU", "load core"):
        table.add_column(title, justify="right" if title else "left")
    seen = ""
    for row in rows:
        if row.case not in titles:
            continue
        if row.case != seen:
            table.add_row(f"[bold]{titles[row.case]}[/bold]")
            seen = row.case
        run = row.figures
        busy = run["busy"]
        table.add_row(
            f"  {row.server}",
            number(run["per_s"]),
            number(row.rate_ratio, 2),
            number(run["p50_ms"], 1),
            number(run["p99_ms"], 1),
            number(run["user_us"], 2),
            number(run["kernel_us"], 2),
            number(row.cpu_ratio, 2),
            f"{busy:.0%}" + ("!" if busy > BUSY_MAX else ""),
        )
        if "delivered_per_s" in run:
            delivered, share = number(run["delivered_per_s"]), run["records_a_message"]
            table.add_row(f"    delivered, in 1 record for {1 / share if share else 0:,.0f}", delivered)
        if run["resumed"]:
            table.add_row(f"    {run['resumed']:.0%} of them resumed")
    return table


def memory(rows: Sequence[Row], cases: Sequence[Case]) -> Table:
    """Return the table of memory."""
    titles = {case.name: case.title for case in cases if case.held}
    table = Table(title="Memory of the server", box=None, pad_edge=False)
    for title in ("", "KiB", "x"):
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        if row.case in titles:
            size = row.figures["connection_bytes"] / KIB
            table.add_row(f"{titles[row.case]}: {row.server}", number(size, 1), number(row.memory_ratio, 2))
    return table


def asked(target: Target) -> str:
    """Return what a target asks for."""
    bound = target.at_least if target.at_least is not None else target.at_most
    assert bound is not None
    sign = "at least" if target.at_least is not None else "at most"
    if target.times is not None:
        case, server = target.times
        return f"{sign} {bound:g} x {server}, {case}"
    return f"{sign} {_said(target, bound)}"


def _said(target: Target, value: float) -> str:
    if target.times is not None:
        return f"{value:.2f} x"
    if target.figure == "connection_bytes":
        return f"{value / KIB:.1f} KiB"
    return f"{value:,.0f}" if value >= 1 else f"{value:.4f}"


def verdicts(given: Sequence[Verdict], cases: Sequence[Case]) -> Table:
    """Return the table of what was to be reached, as far as its case was measured."""
    titles = {case.name: case.title for case in cases}
    table = Table(title="To be reached", box=None, pad_edge=False)
    for title in ("", "asked", "is", "reached"):
        table.add_column(title)
    for verdict in given:
        target = verdict.target
        if target.case not in titles:
            continue
        table.add_row(
            WORDS[target.figure].format(case=titles[target.case]),
            asked(target),
            ABSENT if verdict.value is None else _said(target, verdict.value),
            {True: "[green]yes[/green]", False: "[red]no[/red]", None: "not measured"}[verdict.reached],
        )
    return table


def show(
    console: Console,
    rows: Sequence[Row],
    cases: Sequence[Case],
    given: Sequence[Verdict],
    notes: Sequence[str],
) -> None:
    """Print all of it."""
    tables = [loads(rows, cases), memory(rows, cases), verdicts(given, cases)]
    console.print(Group(*(table for table in tables if table.row_count)))
    for note in notes:
        console.print(note)
