"""The process of the API: one listener, one thread for the store, and an end that finishes what was begun."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from routing.gateway.signed import SignedRequests
from routing.mesh.api.app import Door
from routing.mesh.api.service import MeshApi
from routing.mesh.api.settings import Api
from routing.mesh.api.sqlite_store import SqliteStore
from routing.mesh.api.store import StoreError
from runtime import clock
from runtime.settings_file import split_bind

SERVICE: Final = "appmesh"
FILE: Final = "mesh.sqlite"


class StartError(Exception):
    """The API cannot start; the text says why."""


def run(settings: Api, log: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; raises `StartError`, and `SettingsError` of the file of keys."""
    uvloop.run(_serve(settings, log))


async def _serve(settings: Api, log: Any) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    callers = SignedRequests(
        Path(settings.signing_keys_file),
        body_bytes_max=settings.body_bytes_max,
        unix_s=clock.unix_s,
        reloaded=lambda why: (
            log.info("signing_keys_loaded") if why is None else log.warning("signing_keys_bad", why=why)
        ),
        service=SERVICE,
    )
    store = _store(Path(settings.data_dir))
    with contextlib.closing(store), ThreadPoolExecutor(max_workers=1) as worker:
        door = Door(MeshApi(store, settings), callers, worker=worker, unix_s=clock.unix_s, log=log)
        await _listen(settings, door, callers, ending, log)
    log.info("mesh_api_stopped")


def _store(folder: Path) -> SqliteStore:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SqliteStore(folder / FILE)
    except (OSError, StoreError) as error:
        raise StartError(str(error)) from error


async def _listen(
    settings: Api, door: Door, callers: SignedRequests, ending: asyncio.Event, log: Any
) -> None:
    runner = web.ServerRunner(web.Server(door.handle), shutdown_timeout=settings.drain_deadline_s)
    await runner.setup()
    try:
        host, port = split_bind(settings.bind)
        try:
            await web.TCPSite(runner, host, port, reuse_address=True).start()
        except OSError as error:
            raise StartError(f"cannot listen on {settings.bind}: {error.strerror or error}") from error
        log.info("mesh_api_started", bind=settings.bind)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(callers.run())
            await ending.wait()
            log.info("mesh_api_draining")
            looking.cancel()
    finally:
        await runner.cleanup()
