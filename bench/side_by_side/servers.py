"""Processes pinned to their cores: what is measured, and the stub of Kinesis beside the generator."""

from __future__ import annotations

import contextlib
import os
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

from loadtests.node import free_port

ROOT: Final = Path(__file__).parents[2]
LOAD_CORE: Final = "1"
START_DEADLINE_S: Final = 20.0
STOP_DEADLINE_S: Final = 60.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Taken(msgspec.Struct, frozen=True):
    """What the stub of Kinesis has taken."""

    records: int = 0
    calls: int = 0


class Stub(msgspec.Struct, frozen=True):
    """The stub of Kinesis: its ports, and the CA of its certificate."""

    port: int
    tls_port: int
    ca: Path

    def taken(self) -> Taken:
        """Return what it has taken."""
        return msgspec.json.decode(fetched(self.port, "/taken"), type=Taken)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One running server: its ports by what is spoken there, and whose CPU and memory count."""

    ports: dict[str, int]
    pids: tuple[int, ...]
    admin: int | None = None
    stub: Stub | None = None

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds it has used, in user space and in the kernel."""
        user_s = kernel_s = 0.0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user_s += int(fields[11]) / CLOCK_TICKS
            kernel_s += int(fields[12]) / CLOCK_TICKS
        return user_s, kernel_s

    def memory_bytes(self) -> int:
        """Return its proportional set size."""
        return sum(_pss_bytes(pid) for pid in self.pids)

    def delivered(self) -> int:
        """Return how many messages its sink has taken; one a record, if it does not say."""
        if self.admin is None:
            assert self.stub is not None
            return self.stub.taken().records
        return metric(self.admin, "headworks_records_delivered_total")


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def fetched(port: int, path: str) -> bytes:
    """Return what a server of the loopback has at a path."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        body: bytes = response.read()
    return body


def metric(admin: int, name: str) -> int:
    """Return a metric of Headworks, summed over its labels."""
    found = [line for line in fetched(admin, "/metrics").decode().splitlines() if line.startswith(name)]
    assert found, name
    return int(sum(float(line.rpartition(" ")[2]) for line in found))


@contextlib.contextmanager
def running(
    command: list[str], core: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command pinned to its cores until the block ends."""
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
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until somebody accepts on a port."""
    until_s = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < until_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}:\n{log.read_text()[-2000:]}")


def scratch() -> Path:
    """Return a folder for what a run leaves behind where it is cut off."""
    folder = ROOT / "var"
    folder.mkdir(exist_ok=True)
    return folder


def pki(folder: Path) -> Path:
    """Make a CA and a certificate for the servers, and return their folder."""
    made = folder / "pki"
    for words in (["init"], ["server", "localhost", "127.0.0.1"]):
        command = [sys.executable, "-m", "commands.cli", "pki", *words, "--dir", str(made)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return made


@contextlib.contextmanager
def kinesis(folder: Path, *, port: int | None = None) -> Iterator[Stub]:
    """Run the stub of Kinesis."""
    stub = Stub(port or free_port(), free_port(), folder / "pki/ca.crt")
    log = folder / "kinesis.log"
    command = [sys.executable, "-m", "bench.side_by_side.kinesis_stub", str(stub.port), str(stub.tls_port)]
    with running([*command, str(folder / "pki")], LOAD_CORE, log) as process:
        wait_for(stub.tls_port, process, log)
        yield stub
