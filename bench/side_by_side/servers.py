"""The servers that are measured, each pinned to core 0, and the stub of Kinesis on core 1."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
COMPILED: Final = ROOT / "build/compiled"
SERVER_CORE: Final = "0"
LOAD_CORE: Final = "1"
START_DEADLINE_S: Final = 20.0
HEADWORKS: Final = """\
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
{sink}
[limits.default]
messages_per_s = 100000000
device_messages_per_s = 10000000
device_bytes_per_s = 10000000000
[admin]
bind = "127.0.0.1:{admin}"
"""
MOSQUITTO: Final = """\
listener {port} 127.0.0.1
allow_anonymous true
max_inflight_messages 0
max_queued_messages 0
persistence false
log_type none
"""
KINESIS: Final = """\
kind = "kinesis"
stream = "bench"
region = "eu-central-1"
endpoint = "http://127.0.0.1:{port}"
shard_bytes_per_s = 1000000000
shard_records_per_s = 1000000
[spool]
bytes_max = 33554432"""
"""A small spool, so that what is accepted is soon what is delivered."""
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Server(msgspec.Struct, frozen=True):
    """One running server: where it listens, whose CPU and memory count, and its admin port, if it has one."""

    port: int
    pid: int
    admin: int | None

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds it has used, in user space and in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / CLOCK_TICKS, int(fields[12]) / CLOCK_TICKS

    def memory_bytes(self) -> int:
        """Return its proportional set size."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss")

    def delivered(self) -> int:
        """Return how many records its sink has taken."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith("headworks_records_delivered_total"):
                    return int(float(line.rpartition(" ")[2]))
        raise AssertionError("no headworks_records_delivered_total")


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[str], core: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command pinned to one core until the block ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(port: int, log: Path) -> None:
    """Wait until somebody accepts on a port."""
    until_s = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Server]:
    """Run Mosquitto, without persistence: it acknowledges from memory."""
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    port, path, log = free_port(), folder / "mosquitto.conf", folder / "mosquitto.log"
    path.write_text(MOSQUITTO.format(port=port))
    with running([program, "-c", str(path)], SERVER_CORE, log) as process:
        wait_for(port, log)
        yield Server(port, process.pid, None)


@contextlib.contextmanager
def headworks(folder: Path, *, compiled: bool, sink: str = 'kind = "null"') -> Iterator[Server]:
    """Run a node of one worker, from what `make compiled` built or from the sources."""
    port, admin, path, log = free_port(), free_port(), folder / "headworks.toml", folder / "headworks.log"
    shutil.rmtree(folder / "data", ignore_errors=True)
    path.write_text(HEADWORKS.format(folder=folder / "data", port=port, admin=admin, sink=sink))
    environment = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    if compiled:
        environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(COMPILED)}
    command = [sys.executable, "-m", "ingest.cli", "serve", "--config", str(path)]
    with running(command, SERVER_CORE, log, environment) as process:
        wait_for(port, log)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Server(port, int(children[0]), admin)


@contextlib.contextmanager
def kinesis(folder: Path) -> Iterator[str]:
    """Run the stub of Kinesis and yield the settings of a sink that uses it."""
    port, log = free_port(), folder / "kinesis.log"
    command = [sys.executable, "-m", "bench.side_by_side.kinesis_stub", str(port)]
    with running(command, LOAD_CORE, log):
        wait_for(port, log)
        yield KINESIS.format(port=port)
