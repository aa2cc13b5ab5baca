"""The composition root of a node: checks what can be checked, then hands over to the supervisor."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import uvloop

from ingest import pipeline
from ingest.admin import Admin
from ingest.delivery.sinks import load as load_sink
from ingest.http import idempotency
from ingest.mqtt import sessions
from ingest.node_memory import MemoryLimits, NodeMemory
from ingest.settings import Settings
from ingest.spool.inspect import spools, worker_of
from ingest.spool.reader import Reader
from ingest.spool.store import SpoolError, Store, place
from ingest.supervisor import Supervisor
from ingest.worker import Worker, WorkerContext, tls_files
from routing.tenancy.registry import Registry, RegistryError
from runtime import clock
from runtime.garbage import settle
from runtime.logs import make_log
from runtime.settings_file import SettingsError, split_bind
from runtime.tls.material import TlsMaterialError, load

SWITCH_INTERVAL_S = 0.0005
"""How soon the writer thread gets the interpreter back after its fsync (the default is 5 ms)."""


class StartError(Exception):
    """The node cannot start; the text says what to do."""


def check(settings: Settings) -> None:
    """Find out before the fork what would stop a worker: ports, files, certificates."""
    data_dir = Path(settings.node.data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data_dir / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StartError(
            f"node.data_dir {data_dir} is not writable: {error.strerror}; choose another, or fix its owner"
        ) from error
    for name, bind in [
        *((f"listeners[{number}]", entry.bind) for number, entry in enumerate(settings.listeners)),
        ("admin", settings.admin.bind),
    ]:
        _check_port(name, bind)
    if any(listener.tls != "off" for listener in settings.listeners):
        try:
            load(tls_files(settings), node_secret=b"", now_s=clock.unix_s())
        except TlsMaterialError as error:
            raise StartError(f"tls: {error}") from error
    if settings.jwt.jwks_file and not Path(settings.jwt.jwks_file).is_file():
        raise StartError(f"jwt.jwks_file {settings.jwt.jwks_file} is not there")
    try:
        Store(data_dir / "worker-0" / "spool.db").close()
        Registry(data_dir / "registry.db").close()
    except (SpoolError, RegistryError) as error:
        raise StartError(str(error)) from error


def _check_port(name: str, bind: str) -> None:
    host, port = split_bind(bind)
    if not port:
        raise StartError(f"{name}.bind {bind}: name a port; every worker would have another one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"{name}.bind {bind}: the port is in use; stop what has it, or choose another"
                ) from error
            raise StartError(f"{name}.bind {bind}: {error.strerror}") from error


def is_compiled() -> bool:
    """Return whether the hot modules are compiled (decision 0012)."""
    return not str(pipeline.__file__).endswith(".py")


def workers_of(settings: Settings) -> int:
    """Return how many workers to run: as set, else one a core."""
    return settings.node.workers or len(os.sched_getaffinity(0))


def _leftover_spools(data_dir: Path, workers: int) -> list[Path]:
    """Return spools of workers that an earlier run had and this one has not."""
    return [path for path in spools(data_dir) if worker_of(path) >= workers]


def _make_memory(settings: Settings, workers: int, data_dir: Path) -> NodeMemory:
    section = settings.memory
    limits = MemoryLimits(
        tenants_max=section.tenants_max,
        devices_max=section.devices_max,
        sessions_max=section.sessions_max,
        idempotency_keys_max=section.idempotency_keys_max,
    )
    try:
        return NodeMemory(workers, limits, data_dir / "node.lock")
    except OSError as error:
        why = f"{error.strerror}; is [memory] what this machine can hold, and {data_dir} ours?"
        raise StartError(f"no memory for the node: {why}") from error


def _introduce(memory: NodeMemory, data_dir: Path, log: Any) -> None:
    """Let every worker know what the spools of all hold, however long its siblings take to start.

    Idempotency keys are answered, sessions are asked for where they are, and what waits to be delivered comes
    before what is taken from now on.
    """
    for path in spools(data_dir):
        try:
            memory.progress().introduce(worker_of(path), *place(path))
            reader = Reader(path)
            idempotency.load(memory.idempotency, reader.keys(), clock.unix_s())
            sessions.introduce(memory.sessions, worker_of(path), reader.rows(sessions.READ_SESSIONS))
            reader.close()
        except SpoolError as error:  # its worker will not start either, and says so
            log.warning("spool_unread", error=str(error))


def serve(settings: Settings) -> int:
    """Run a node until it is told to stop; the exit code of the process. Raises `StartError`."""
    check(settings)
    log = make_log(settings.log.level, settings.log.format)
    workers = workers_of(settings)
    data_dir = Path(settings.node.data_dir)
    for path in _leftover_spools(data_dir, workers):
        workers = max(workers, worker_of(path) + 1)
        log.warning("more_workers_than_set", workers=workers, why=f"{path} is from an earlier run")
    memory = _make_memory(settings, workers, data_dir)
    _introduce(memory, data_dir, log)
    secret = secrets.token_bytes(32)

    def worker_main(index: int) -> int:
        context = WorkerContext(index, settings, memory, secret, log.bind(worker=index))
        return uvloop.run(_run_worker(context))

    def admin_main() -> int:
        return asyncio.run(Admin(memory, settings).run())

    load_sink(settings.sink.kind)
    settle()  # what is made before the fork stays shared
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    kind = settings.sink.kind
    log.info("starting", node=settings.node.name, workers=workers, sink=kind, compiled=is_compiled())
    supervisor = Supervisor(
        memory=memory,
        worker_main=worker_main,
        admin_main=admin_main,
        drain_deadline_s=settings.node.drain_deadline_s,
        log=log,
    )
    code = supervisor.run()
    log.info("stopped", code=code)
    return code


async def _run_worker(context: WorkerContext) -> int:
    try:
        worker = Worker(context)
    except (SpoolError, RegistryError, TlsMaterialError, SettingsError, OSError) as error:
        context.log.error("worker_cannot_start", error=str(error))  # noqa: TRY400  # the text says it all
        return 1
    return await worker.run()
