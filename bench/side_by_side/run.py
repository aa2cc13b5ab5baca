"""Headworks beside Mosquitto: each on core 0 in turns, one generator on core 1, ratios in one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

HEADWORKS = """\
[node]
name = "bench"
data_dir = "{folder}"
workers = 1
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{port}"
tls = "off"
auth = ["topic"]
[sink]
kind = "null"
[limits.default]
messages_per_s = 100000000
device_messages_per_s = 10000000
device_bytes_per_s = 10000000000
[admin]
bind = "127.0.0.1:{admin}"
"""
MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
max_inflight_messages 0
max_queued_messages 0
persistence false
log_type none
"""
CASES = ((100, 64), (1000, 1))


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def server(name: str, folder: Path) -> Iterator[int]:
    """Start a server on core 0 and yield its port."""
    port, admin = free_port(), free_port()
    path = folder / f"{name}.conf"
    if name == "headworks":
        path.write_text(HEADWORKS.format(folder=folder / "data", port=port, admin=admin))
        command = [sys.executable, "-m", "ingest.cli", "serve", "--config", str(path)]
    else:
        path.write_text(MOSQUITTO.format(port=port))
        command = [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(path)]
    log = (folder / f"{name}.log").open("ab")
    process = subprocess.Popen(["taskset", "-c", "0", *command], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def measure(port: int, connections: int, window: int, seconds: float) -> dict[str, float]:
    """Run the generator on core 1."""
    command = ["taskset", "-c", "1", sys.executable, "-m", "bench.side_by_side.generator"]
    command += ["--port", str(port), "--connections", str(connections), "--window", str(window)]
    command += ["--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folder = Path(temporary).resolve()
        for _ in range(options.rounds):
            for connections, window in CASES:
                for name in ("mosquitto", "headworks"):
                    with server(name, folder) as port:
                        result = measure(port, connections, window, options.seconds)
                    results.setdefault((name, connections, window), []).append(result)
    rows = []
    for connections, window in CASES:
        ours, theirs = (results[name, connections, window] for name in ("headworks", "mosquitto"))
        ratio = statistics.median(
            a["messages_per_s"] / b["messages_per_s"] for a, b in zip(ours, theirs, strict=True)
        )
        rows.append(
            {
                "connections": connections,
                "in_flight": window,
                "headworks_per_s": statistics.median(each["messages_per_s"] for each in ours),
                "mosquitto_per_s": statistics.median(each["messages_per_s"] for each in theirs),
                "ratio": ratio,
                "headworks_p99_ms": statistics.median(each["p99_ms"] for each in ours),
                "mosquitto_p99_ms": statistics.median(each["p99_ms"] for each in theirs),
            }
        )
    if options.json:
        print(json.dumps(rows))
        return
    table = Table("connections", "in flight", "headworks/s", "mosquitto/s", "ratio", "p99 ms", "p99 ms (m.)")
    for row in rows:
        table.add_row(
            f"{row['connections']:.0f}",
            f"{row['in_flight']:.0f}",
            f"{row['headworks_per_s']:,.0f}",
            f"{row['mosquitto_per_s']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['headworks_p99_ms']:.1f}",
            f"{row['mosquitto_p99_ms']:.1f}",
        )
    Console().print(table)
    Console().print("QoS 1, 105-byte telemetry; Headworks decodes, limits and fsyncs before it acknowledges.")


if __name__ == "__main__":
    main()
