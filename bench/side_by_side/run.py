"""Headworks beside Mosquitto: each on core 0 in turns, one generator on core 1, ratios in one run.

    python -m bench.side_by_side.run [pure] [--only NAME] [--rounds N] [--seconds S] [--json] [--svg FILE]

Headworks decodes, limits and fsyncs before it acknowledges; Mosquitto acknowledges from memory. With `pure`
Headworks is measured without compiled modules as well; Fluent Bit, FlashMQ and aMQTT are where FLUENT_BIT,
FLASHMQ or AMQTT is their program. CPU is that of the server process, in both spaces, for what it
acknowledged: it tells more than the rate where something else uses the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.side_by_side import chart, measure, servers, table
from bench.side_by_side.cases import (
    CORES_FOR_TWO_WORKERS,
    HEADWORKS,
    Case,
    chosen,
    cores_for,
    targets_for,
)
from bench.side_by_side.contenders import COMPILED, Contender, Place, contenders, programs_in
from bench.side_by_side.figures import Run, Runs, exported, judged, ratio, rows


def one_run(contender: Contender, case: Case, folder: Path, program: Path, seconds: float) -> Run:
    """Start a server, measure it, and stop it."""
    cores = cores_for(case, os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        stub = stack.enter_context(servers.kinesis(folder)) if case.sink == "kinesis" else None
        place = Place(folder, cores.server, case.tls, case.workers, stub)
        server = stack.enter_context(contender.starts(place))
        return measure.measured(server, program, case, cores, pki=folder / "pki", seconds=seconds)


def all_runs(
    cases: Sequence[Case], who: Sequence[Contender], rounds: int, seconds: float, progress: Console
) -> Runs:
    """Measure everybody in turns; memory, which is the same each time, only in the first round."""
    runs: Runs = {}
    # On the disk that the project is on: /tmp may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=servers.scratch()) as temporary, progress.status("") as status:
        folder = Path(temporary).resolve()
        program = measure.build(folder)
        servers.pki(folder)
        for round_ in range(rounds):
            for case in cases:
                if case.held and round_:
                    continue
                for contender in who:
                    if case.needs not in contender.can:
                        continue
                    status.update(f"round {round_ + 1} of {rounds}: {contender.name}, {case.title}")
                    run = one_run(contender, case, folder, program, seconds)
                    runs.setdefault((case.name, contender.name), []).append(run)
    return runs


def notes_on(runs: Runs, cores: int) -> list[str]:
    """Return what the tables do not say."""
    workers = runs.get(("workers-2", HEADWORKS))
    if cores >= CORES_FOR_TWO_WORKERS or not workers:
        return []
    left_out = (
        f"Whether two workers take 1.8 times what one takes was left out: they and the generators need "
        f"{CORES_FOR_TWO_WORKERS} cores, and here are {cores}. Above, two workers share one core"
    )
    cpu = ratio(workers, runs.get(("mqtt-64", HEADWORKS), []), "cpu_us")
    return [
        f"{left_out}." if cpu is None else f"{left_out}, and take {cpu:.2f} times the CPU of one a message."
    ]


def main() -> None:
    """Measure in turns and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pure", nargs="?", choices=["pure"], help="also without compiled modules")
    parser.add_argument(
        "--only", action="append", default=[], help="cases whose names begin so; several times"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path, help="where the chart goes")
    options = parser.parse_args()
    if not COMPILED.exists():
        raise SystemExit("run make compiled first")
    cases = chosen(options.only)
    if not cases:
        raise SystemExit(f"no case begins so; there are: {', '.join(case.name for case in chosen([]))}")
    who = contenders(programs_in(), pure=bool(options.pure))
    runs = all_runs(cases, who, options.rounds, options.seconds, Console(stderr=True))
    cores = os.cpu_count() or 1
    verdicts, notes = judged(runs, targets_for(cores)), notes_on(runs, cores)
    if options.svg is not None:
        options.svg.write_text(chart.svg(rows(runs, cases), cases))
    if options.json:
        print(json.dumps(exported(runs, cases, verdicts, notes)))
    else:
        table.show(Console(width=table.WIDTH), rows(runs, cases), cases, verdicts, notes)


if __name__ == "__main__":
    main()
