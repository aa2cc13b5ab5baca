"""The gateway under load, known by its command line, its settings file and its /status only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import msgspec

from loadtests.million import machine

START_DEADLINE_S: Final = 30.0
START_A_WORKER_S: Final = 2.0
STATUS_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 120.0
DRAIN_DEADLINE_S: Final = 60
PKI_DEADLINE_S: Final = 60.0
OTHER_DESCRIPTORS: Final = 300
"""What a worker has beside its connections: spool, registry, log, and two a worker for mail."""
DESCRIPTORS_A_WORKER: Final = 2
SETTINGS: Final = """\
[node]
name = "million"
data_dir = "{folder}/data"
workers = {workers}
drain_deadline_s = {drain_s}
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{port}"
{listener}
[accept]
connections_max = {connections_max}
[mqtt]
linger_s = {linger_s}
[sink]
kind = "{sink}"
[limits.default]
device_messages_per_s = {device_per_s}
device_connections_max = 2
[memory]
devices_max = {devices}
sessions_max = {devices}
idempotency_keys_max = 1000
[admin]
bind = "127.0.0.1:{admin}"
"""
PLAIN: Final = 'tls = "off"\nauth = ["topic"]'
MUTUAL: Final = """\
tls = "mutual"
auth = ["certificate"]
[tls]
certificate = "{folder}/pki/server.crt"
key = "{folder}/pki/server.key"
client_ca = "{folder}/pki/ca.crt"
crl = "{folder}/pki/crl.pem"
"""


class NodeError(Exception):
    """The gateway did not do what a run needs; the text has its last words."""


class Entry(msgspec.Struct, frozen=True):
    """A tenant in the ledger."""

    accepted: int
    delivered: int
    spooled: int
    dead_lettered: int


class Status(msgspec.Struct, frozen=True):
    """What of /status a run is judged by."""

    ready: bool
    connections: int
    accepted: int
    delivered: int
    refused: dict[str, int]
    ledger: dict[str, Entry]
    acknowledge_p99_s: float | None
    not_ready: list[str] = []

    def booked(self, field: str) -> int:
        """Return the sum of a field of the ledger over all tenants."""
        return sum(int(getattr(entry, field)) for entry in self.ledger.values())


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def connections_max(descriptors: int, workers: int) -> int:
    """Return how many connections a worker has descriptors for."""
    return descriptors - OTHER_DESCRIPTORS - DESCRIPTORS_A_WORKER * workers


class Node:
    """One gateway process with its workers, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: int,
        workers: int,
        descriptors: int,
        linger_s: float,
        compiled: Path | None,
    ) -> None:
        self._folder = folder
        self._devices = devices
        self._workers = workers
        self._linger_s = linger_s
        self._connections_max = connections_max(descriptors, workers)
        self.port, self._admin = free_port(), free_port()
        self._settings = folder / "headworks.toml"
        self._log = folder / "headworks.log"
        self._environment = dict(os.environ)
        if compiled is not None:
            self._environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(compiled)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def ca(self) -> Path:
        """The certificate of the CA that the gateway trusts."""
        return self._folder / "pki/ca.crt"

    @property
    def ca_key(self) -> Path:
        """Its key, with which the fleet signs its devices' certificates."""
        return self._folder / "pki/ca.key"

    async def prepare(self, *, sink: str, device_per_s: float, tls: bool, more: str) -> None:
        """Write the settings, and the certificates of the gateway; `more` is further TOML."""
        if tls:
            await self._pki("init")
            await self._pki("server", "localhost", "127.0.0.1")
        text = SETTINGS.format(
            folder=self._folder,
            workers=self._workers,
            drain_s=DRAIN_DEADLINE_S,
            port=self.port,
            listener=MUTUAL.format(folder=self._folder) if tls else PLAIN,
            connections_max=self._connections_max,
            linger_s=self._linger_s,
            sink=sink,
            device_per_s=device_per_s,
            devices=self._devices,
            admin=self._admin,
        )
        self._settings.write_text(text + more)

    async def _pki(self, command: str, *names: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ingest.cli", "pki", command, *names),
            *("--dir", str(self._folder / "pki")),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PKI_DEADLINE_S):
            _, words = await process.communicate()
        if process.returncode:
            raise NodeError(f"headworks pki {command}: {words.decode(errors='replace').strip()}")

    async def start(self) -> float:
        """Start it, wait until every worker is ready, and return how long that took in seconds."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ingest.cli", "serve", "--config", str(self._settings)),
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the runner
            )
        until_s = began_s + START_DEADLINE_S + START_A_WORKER_S * self._workers
        status = None
        while loop.time() < until_s and self._process.returncode is None:
            status = await self.status()
            if status is not None and status.ready:
                return loop.time() - began_s
            await asyncio.sleep(0.1)
        why = ", ".join(status.not_ready) if status is not None else self._last_words()
        raise NodeError(f"the gateway did not become ready: {why}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it said nothing"

    @property
    def pids(self) -> list[int]:
        """The supervisor, its workers and its admin process."""
        return machine.family(self._process.pid) if self._process is not None else []

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return self._process is not None and self._process.returncode is None

    async def status(self) -> Status | None:
        """Return what it says of itself, None if it does not answer."""
        return await asyncio.to_thread(self._status)

    def _status(self) -> Status | None:
        url = f"http://127.0.0.1:{self._admin}/status"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=STATUS_DEADLINE_S) as answer:
            return msgspec.json.decode(answer.read(), type=Status)
        return None

    async def stop(self) -> int:
        """Drain it and return its exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return -signal.SIGKILL

    def kill(self) -> None:
        """End it now, with its workers, which die with it."""
        if self.alive:
            assert self._process is not None
            self._process.kill()
