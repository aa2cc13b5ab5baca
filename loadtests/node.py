"""A gateway under load, known by its command line, its settings file and its /status only."""

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
COMMAND_DEADLINE_S: Final = 60.0
GONE_DEADLINE_S: Final = 10.0


class NodeError(Exception):
    """The gateway did not do what a run needs; the text has its last words."""


class Entry(msgspec.Struct, frozen=True):
    """A tenant in the ledger."""

    accepted: int
    delivered: int
    spooled: int
    dead_lettered: int


class Worker(msgspec.Struct, frozen=True):
    """A worker process."""

    pid: int
    starts: int = 0


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
    workers: list[Worker] = []

    def booked(self, field: str) -> int:
        """Return the sum of a field of the ledger over all tenants."""
        return sum(int(getattr(entry, field)) for entry in self.ledger.values())


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def fetch(url: str) -> bytes | None:
    """Return what is served at `url`, None if nothing is."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=STATUS_DEADLINE_S) as answer:
        return bytes(answer.read())
    return None


def status_at(admin: str) -> Status | None:
    """Return what the node at `admin` says of itself, None if it does not answer."""
    body = fetch(f"http://{admin}/status")
    return msgspec.json.decode(body, type=Status) if body is not None else None


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Node:
    """One gateway process with its workers, in a folder of its own."""

    def __init__(self, folder: Path, *, workers: int, compiled: Path | None) -> None:
        self.folder = folder
        self._workers = workers
        self._admin = free_port()
        self.settings = folder / "headworks.toml"
        self._log = folder / "headworks.log"
        self._environment = dict(os.environ)
        if compiled is not None:
            self._environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(compiled)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def admin(self) -> str:
        """Where /status is."""
        return f"127.0.0.1:{self._admin}"

    @property
    def pki(self) -> Path:
        """The folder of the CA that the gateway trusts."""
        return self.folder / "pki"

    @property
    def ca(self) -> Path:
        """The certificate of the CA."""
        return self.pki / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Its key, with which the fleet signs its devices' certificates."""
        return self.pki / "ca.key"

    def write_settings(self, text: str) -> None:
        """Write the settings that it starts with."""
        self.settings.write_text(text)

    async def make_pki(self) -> None:
        """Make a CA, and a certificate of the gateway."""
        await self.command("pki", "init", "--dir", str(self.pki))
        await self.command("pki", "server", "localhost", "127.0.0.1", "--dir", str(self.pki))

    async def make_revoked(self) -> None:
        """Make a certificate that is on the revocation list, with its key: `revoked.pem`."""
        await self.command("pki", "device", "acme", "revoked", "--dir", str(self.pki))
        issued = self.pki / "devices" / "acme" / "revoked.crt"
        await self.command("pki", "revoke", str(issued), "--dir", str(self.pki))
        revoked = self.pki / "revoked.pem"
        revoked.write_bytes(issued.with_suffix(".key").read_bytes() + issued.read_bytes())

    async def command(self, *words: str) -> None:
        """Run a command of the gateway; `NodeError` if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "commands.cli", *words),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        async with asyncio.timeout(COMMAND_DEADLINE_S):
            _, said = await process.communicate()
        if process.returncode:
            raise NodeError(f"headworks {' '.join(words[:2])}: {said.decode(errors='replace').strip()}")

    async def start(self) -> float:
        """Start it, wait until every worker is ready, and return how long that took in seconds."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "commands.cli", "serve", "--config", str(self.settings)),
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
        return await asyncio.to_thread(status_at, self.admin)

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

    async def kill_all(self) -> None:
        """End it with kill -9, the workers too, and wait until they are gone."""
        pids = self.pids
        self.kill()
        if self._process is not None:
            await self._process.wait()
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(GONE_DEADLINE_S):
            while any(map(_exists, pids)):  # noqa: ASYNC110  # they are not our children
                await asyncio.sleep(0.01)

    async def kill_worker(self, number: int) -> None:
        """End one worker with kill -9; the supervisor starts another."""
        status = await self.status()
        if status is None or not status.workers:
            raise NodeError("the gateway does not say what its workers are")
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.workers[number % len(status.workers)].pid, signal.SIGKILL)
