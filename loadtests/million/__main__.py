"""`python -m loadtests.million`: see docs/guides/load.md.

Exit codes: 0 the promise holds, 1 it does not, 2 wrong options, 3 there is no compiler for the generator.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from loadtests.million import machine
from loadtests.million.compiler import NoGenerator, compiled
from loadtests.million.run import Options, Run
from loadtests.million.screen import Screen, figures_table, promise_table

KEPT: Final = 0
BROKEN: Final = 1
NO_GENERATOR: Final = 3
DEVICES: Final = 1_000_000
DEVICES_TLS: Final = 100_000
WIDTH: Final = 160
"""Of what is printed into a file."""


def main() -> int:
    """Run from the command line and return the exit code."""
    options, folder, as_json = _options()
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    try:
        program = compiled(folder.parent / "bin", tls=options.tls, compiler=os.environ.get("CC") or "cc")
    except NoGenerator as error:
        console.print(f"million: {error}", style="red", highlight=False, markup=False)
        return NO_GENERATOR
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    descriptors = machine.raise_descriptors()
    with Screen(console) as screen:
        run = Run(
            options,
            folder=folder.resolve(),
            program=program.resolve(),
            descriptors=descriptors,
            cores=len(os.sched_getaffinity(0)),
            screen=screen,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nobody is left behind
        outcome = asyncio.run(run.run())
    console.print(figures_table(outcome.figures), highlight=False)
    console.print(promise_table(outcome.promise), highlight=False)
    if as_json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return KEPT if outcome.kept else BROKEN


def _options() -> tuple[Options, Path, bool]:
    parser = argparse.ArgumentParser(prog="million", description="Connect a million devices, and judge it.")
    parser.add_argument("--devices", type=int, help="1,000,000, with TLS 100,000")
    parser.add_argument("--hold", type=float, default=300.0, help="seconds to publish for")
    parser.add_argument("--period", type=float, default=30.0, help="seconds between messages of a device")
    parser.add_argument("--keep-alive", type=int, default=60, help="seconds")
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="of the gateway; 0: as descriptors ask for")
    parser.add_argument("--tls", action="store_true", help="mutual TLS, a certificate a device")
    parser.add_argument("--storm", action="store_true", help="all drop at once and come back")
    parser.add_argument("--back-off", type=float, default=0.0, help="seconds; 0: 1 for 30,000 devices")
    parser.add_argument("--storm-within", type=float, default=120.0, help="seconds until the last is served")
    parser.add_argument("--p99-ms", type=float, default=250.0, help="the longest p99 of an acknowledgement")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds without progress to give up after")
    parser.add_argument("--sink", choices=("null", "local"), default="null")
    parser.add_argument("--linger", type=float, default=-1.0, help="mqtt.linger_s; below 0: by the workers")
    parser.add_argument(
        "--settings", default="", help="further settings of the gateway, as TOML; [mqtt] needs --linger 0"
    )
    parser.add_argument("--compiled", type=Path, help="run the gateway that is installed here")
    parser.add_argument("--folder", type=Path, default=Path("var/million/run"), help="emptied first")
    parser.add_argument("--json", action="store_true")
    values = parser.parse_args()
    if values.devices is None:
        values.devices = DEVICES_TLS if values.tls else DEVICES
    if values.devices < 1 or values.hold <= 0 or values.period <= 0 or values.tenants < 1:
        parser.error("--devices, --hold, --period and --tenants must be above 0")
    options = Options(
        devices=values.devices,
        hold_s=values.hold,
        period_s=values.period,
        keep_alive_s=values.keep_alive,
        tenants=values.tenants,
        workers=values.workers,
        tls=values.tls,
        storm=values.storm,
        back_off_s=values.back_off or max(1.0, values.devices / 30_000),
        storm_s=values.storm_within,
        p99_ms=values.p99_ms,
        stall_s=values.stall,
        sink=values.sink,
        linger_s=values.linger,
        settings=values.settings,
        compiled=values.compiled.resolve() if values.compiled else None,
    )
    return options, values.folder, values.json


if __name__ == "__main__":
    sys.exit(main())
