"""Headworks beside Mosquitto: each on core 0 in turns, one generator on core 1, ratios in one run.

    python -m bench.side_by_side.run [pure] [--rounds N] [--seconds S] [--json]

Headworks decodes, limits and fsyncs before it acknowledges; Mosquitto acknowledges from memory. With `pure`
Headworks is measured without compiled modules as well. CPU is that of the server process, in both spaces, for
what it acknowledged: it tells more than the rate where something else uses the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.side_by_side.servers import COMPILED, LOAD_CORE, Server, headworks, kinesis, mosquitto

WARM_UP_S: Final = 1.0
EDGE_S: Final = 0.3
"""CPU is counted a little after the warm-up, and until a little before the end."""
IDLE_CONNECTIONS: Final = 2000
SETTLE_S: Final = 1.5
WIDTH: Final = 140


class Case(msgspec.Struct, frozen=True):
    """One load: so many connections with so many publishes in flight each, and where they go."""

    connections: int
    window: int
    sink: str


class Figures(msgspec.Struct, frozen=True):
    """What one run gave. CPU is microseconds a message; `delivered_per_s` only where there is a sink."""

    messages_per_s: float
    p50_ms: float
    p99_ms: float
    user_us: float
    kernel_us: float
    delivered_per_s: float | None


CASES: Final = (
    Case(100, 64, "null"),
    Case(1000, 1, "null"),
    Case(100, 64, "kinesis"),
    Case(1000, 1, "kinesis"),
)


def build(folder: Path) -> Path:
    """Compile the generator."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("there is no C compiler: install gcc")
    program = folder / "generator"
    source = Path(__file__).with_name("generator.c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


@contextlib.contextmanager
def started(name: str, folder: Path, sink: str) -> Iterator[Server]:
    """Start one of the servers."""
    with contextlib.ExitStack() as stack:
        if name == "mosquitto":
            yield stack.enter_context(mosquitto(folder))
            return
        into = stack.enter_context(kinesis(folder)) if sink == "kinesis" else 'kind = "null"'
        yield stack.enter_context(headworks(folder, compiled=name == "headworks", sink=into))


def measure(server: Server, program: Path, case: Case, seconds: float) -> Figures:
    """Drive a server from core 1 and read its figures in the middle of it."""
    command = ["taskset", "-c", LOAD_CORE, str(program), str(server.port), str(case.connections)]
    command += [str(case.window), str(seconds), str(WARM_UP_S)]
    delivers = server.admin is not None and case.sink != "null"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as generator:
        time.sleep(WARM_UP_S + EDGE_S)
        before, began_s, had = server.cpu_s(), time.monotonic(), server.delivered() if delivers else 0
        time.sleep(seconds - 2 * EDGE_S)
        after, took_s = server.cpu_s(), time.monotonic() - began_s
        has = server.delivered() if delivers else 0
        printed, _ = generator.communicate(timeout=60)
    given: dict[str, float] = json.loads(printed)
    messages = given["messages_per_s"] * took_s
    user_us, kernel_us = (1e6 * (late - early) / messages for late, early in zip(after, before, strict=True))
    delivered_per_s = (has - had) / took_s if delivers else None
    return Figures(**given, user_us=user_us, kernel_us=kernel_us, delivered_per_s=delivered_per_s)


def idle_bytes(server: Server, connections: int) -> float:
    """Return what one idle connection takes of the memory of a server."""
    before = server.memory_bytes()
    peers = []
    for number in range(connections):
        peer = socket.create_connection(("127.0.0.1", server.port))
        client = f"idle-{number}".encode()
        peer.sendall(bytes((0x10, 12 + len(client))) + b"\0\4MQTT\4\2\0\0\0" + bytes((len(client),)) + client)
        assert peer.recv(4) == b"\x20\2\0\0"
        peers.append(peer)
    time.sleep(SETTLE_S)
    took = server.memory_bytes() - before
    for peer in peers:
        peer.close()
    return took / connections


def median(runs: list[Figures]) -> Figures:
    """Return the median of each figure."""
    values: dict[str, Any] = {
        name: None
        if runs[0].delivered_per_s is None and name == "delivered_per_s"
        else statistics.median(getattr(run, name) for run in runs)
        for name in Figures.__struct_fields__
    }
    return Figures(**values)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pure", nargs="?", choices=["pure"], help="also without compiled modules")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not COMPILED.exists():
        raise SystemExit("run make compiled first")
    names = ["mosquitto", "headworks", *(["headworks (pure)"] if options.pure else [])]
    runs: dict[tuple[Case, str], list[Figures]] = {}
    idle: dict[str, float] = {}
    # On the disk that the project is on: /tmp may be memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=".") as temporary, Console(stderr=True).status("") as status:
        folder = Path(temporary).resolve()
        program = build(folder)
        for round_ in range(options.rounds):
            for case in CASES:
                for name in names:
                    if name == "mosquitto" and case.sink != "null":
                        continue
                    status.update(f"round {round_ + 1} of {options.rounds}: {name}, {case}")
                    with started(name, folder, case.sink) as server:
                        run = measure(server, program, case, options.seconds)
                    runs.setdefault((case, name), []).append(run)
        for name in names:
            status.update(f"idle connections: {name}")
            with started(name, folder, "null") as server:
                idle[name] = idle_bytes(server, IDLE_CONNECTIONS)
    rows = []
    for (case, name), measured in runs.items():
        # Mosquitto has no sink: what it does is the same load, acknowledged from memory.
        beside = runs[Case(case.connections, case.window, "null"), "mosquitto"]
        ratio = statistics.median(
            ours.messages_per_s / theirs.messages_per_s for ours, theirs in zip(measured, beside, strict=True)
        )
        cpu_ratio = statistics.median(
            (ours.user_us + ours.kernel_us) / (theirs.user_us + theirs.kernel_us)
            for ours, theirs in zip(measured, beside, strict=True)
        )
        of = msgspec.to_builtins(case) | msgspec.to_builtins(median(measured))
        rows.append({"server": name, **of, "rate_ratio": ratio, "cpu_ratio": cpu_ratio})
    if options.json:
        print(json.dumps({"load": rows, "idle_bytes": idle}))
    else:
        show(rows, idle)


def show(rows: list[dict[str, Any]], idle: dict[str, float]) -> None:
    """Print the figures as a table."""
    table = Table(title="Telemetry of 105 bytes, QoS 1, a core for the server; x: times Mosquitto's")
    for title in ("server", "connections", "in flight", "sink", "messages/s", "x", "delivered/s"):
        table.add_column(title, justify="left" if title in {"server", "sink"} else "right")
    for title in ("p50 ms", "p99 ms", "us user", "us kernel", "x CPU"):
        table.add_column(title, justify="right")
    for row in sorted(rows, key=lambda row: (row["window"] == 1, row["sink"] != "null")):
        delivered = row["delivered_per_s"]
        table.add_row(
            row["server"],
            str(row["connections"]),
            str(row["window"]),
            "-" if row["server"] == "mosquitto" else row["sink"],
            f"{row['messages_per_s']:,.0f}",
            f"{row['rate_ratio']:.2f}",
            "-" if delivered is None else f"{delivered:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['user_us']:.2f}",
            f"{row['kernel_us']:.2f}",
            f"{row['cpu_ratio']:.2f}",
        )
    console = Console(width=WIDTH)
    console.print(table)
    each = ", ".join(f"{name} {size / 1024:.1f} KiB" for name, size in idle.items())
    console.print(f"Memory of an idle connection in the server: {each}.")


if __name__ == "__main__":
    main()
