"""From what the runs gave to medians, ratios and verdicts.

A run gives named figures. The runs of a case are in turns, so that a ratio is the median of the ratios of
each round: what disturbed a round disturbed both of its runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.side_by_side.cases import HEADWORKS, MOSQUITTO, Case, Target

Run = dict[str, float]
Runs = dict[tuple[str, str], list[Run]]
"""By case and server; one of each round."""


def medians(runs: Sequence[Run]) -> Run:
    """Return the median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def ratio(ours: Sequence[Run], theirs: Sequence[Run], figure: str) -> float | None:
    """Return the median of the ratios of each round; None if one of them has no such figure."""
    ratios = [
        our[figure] / their[figure]
        for our, their in zip(ours, theirs, strict=False)
        if their.get(figure) and figure in our
    ]
    return statistics.median(ratios) if ratios else None


class Verdict(msgspec.Struct, frozen=True):
    """What became of a target; no value if it was not measured."""

    target: Target
    value: float | None

    @property
    def reached(self) -> bool | None:
        """Whether it is reached, if it was measured."""
        return None if self.value is None else self.target.reached(self.value)


def judged(runs: Runs, targets: Sequence[Target]) -> list[Verdict]:
    """Return a verdict for each target."""
    verdicts = []
    for target in targets:
        ours = runs.get((target.case, HEADWORKS), [])
        if target.times is not None:
            value = ratio(ours, runs.get(target.times, []), target.figure)
        else:
            value = medians(ours)[target.figure] if ours and target.figure in ours[0] else None
        verdicts.append(Verdict(target, value))
    return verdicts


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A server under a load: medians, and their multiples of Mosquitto's."""

    case: str
    server: str
    figures: Run
    rate_ratio: float | None
    cpu_ratio: float | None
    memory_ratio: float | None


def rows(runs: Runs, cases: Sequence[Case]) -> list[Row]:
    """Return a row for each case and server, in the order of the cases."""
    made = []
    for case in cases:
        for (name, server), measured in runs.items():
            if name != case.name:
                continue
            beside = runs.get((name, MOSQUITTO)) or runs.get((case.beside, MOSQUITTO), [])
            made.append(
                Row(
                    case=name,
                    server=server,
                    figures=medians(measured),
                    rate_ratio=ratio(measured, beside, "per_s"),
                    cpu_ratio=ratio(measured, beside, "cpu_us"),
                    memory_ratio=ratio(measured, beside, "connection_bytes"),
                )
            )
    return made


def exported(runs: Runs, cases: Sequence[Case], verdicts: Sequence[Verdict], notes: Sequence[str]) -> Any:
    """Return everything as plain data, for JSON."""
    return {
        "cases": msgspec.to_builtins(list(cases)),
        "rows": msgspec.to_builtins(rows(runs, cases)),
        "targets": [
            msgspec.to_builtins(verdict.target) | {"value": verdict.value, "reached": verdict.reached}
            for verdict in verdicts
        ],
        "notes": list(notes),
    }
