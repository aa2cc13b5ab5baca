"""What a person, or a script, sees of a shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from routing.traffic.judgement import Terms
from routing.traffic.outcome import Event, Side, Told
from routing.traffic.plan import Plan
from routing.traffic.shift import Pace

STYLES: Final = {
    Told.STEP: "bold",
    Told.PROMOTED: "bold green",
    Told.ROLLED_BACK: "bold red",
    Told.ABORTED: "bold yellow",
    Told.STOPPED: "bold yellow",
    Told.UNAVAILABLE: "yellow",
}


def as_json(event: Event) -> None:
    """Print an event as a line of JSON."""
    typer.echo(msgspec.json.encode(event).decode())


def on_screen(console: Console, status: Status | None, steps: int) -> Callable[[Event], None]:
    """Return what prints events: looks go to the status, or without one are lines when they differ."""
    before = ""

    def tell(event: Event) -> None:
        nonlocal before
        text = line(event, steps)
        if event.event is Told.LOOK:
            if status is not None:
                status.update(Text(text))
            elif event.why != before:
                console.print(text, highlight=False, markup=False)
            before = event.why
            return
        console.print(text, style=STYLES[event.event], highlight=False, markup=False)

    return tell


def line(event: Event, steps: int) -> str:
    """Return an event in words."""
    match event.event:
        case Told.STEP:
            assert event.step is not None
            return f"step {event.step + 1} of {steps}: {_weights(event.weights or {})}"
        case Told.LOOK if event.canary is not None and event.baseline is not None:
            return f"  canary {_side(event.canary)}; baseline {_side(event.baseline)}: {event.why}"
        case Told.LOOK | Told.UNAVAILABLE:
            return f"  {event.why}"
        case told:
            return f"{told.value.replace('_', ' ')}: {event.why}"


def plan_lines(plan: Plan, nodes: tuple[str, ...]) -> list[str]:
    """Return the steps of a plan in words."""
    return [
        f"step {step + 1} of {len(plan.steps)}: "
        f"{_weights(dict(zip(nodes, plan.weights(step), strict=True)))} ({plan.share(step):.1%} of all)"
        for step in range(len(plan.steps))
    ]


def terms_lines(terms: Terms | None, pace: Pace) -> list[str]:
    """Return what a canary is asked, in words."""
    lines = [
        f"each step takes {pace.step_s:g} s to {pace.step_max_s:g} s, with a look every {pace.look_s:g} s"
    ]
    if terms is None:
        return [*lines, "the canary is not watched"]
    lines.append(f"a step needs {terms.samples_min} answers of the canary")
    if terms.success_min is not None:
        lines.append(f"at least {terms.success_min:.3%} of its requests succeed")
    if terms.worse_max is not None:
        lines.append(f"at most {terms.worse_max:.3%} more of them fail than of the baseline's")
    if terms.p99_max_ms is not None:
        lines.append(
            f"99 % of them take at most {terms.p99_max_ms:g} ms, up to the next bound of a histogram"
        )
    if terms.p99_ratio_max is not None:
        lines.append(
            f"99 % of them take at most {terms.p99_ratio_max:g} times as long as 99 % of the baseline's"
        )
    return [
        *lines,
        f"a canary that does so is rolled back with a probability of at most {terms.mistakes_max:g}",
    ]


def _weights(weights: dict[str, int]) -> str:
    return ", ".join(f"{node} {weight}" for node, weight in weights.items())


def _side(side: Side) -> str:
    latency = "" if side.p99_ms is None else f", p99 {side.p99_ms:.1f} ms"
    return f"{side.requests:,} requests, {side.failures:,} failed{latency}"
