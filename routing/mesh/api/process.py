"""The process of the API: its listener, one thread for the store, the control plane beside it if asked for.

It finishes what was begun when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from routing.gateway.signed import SignedRequests
from routing.mesh.api.app import Door
from routing.mesh.api.service import MeshApi
from routing.mesh.api.serving import Serving
from routing.mesh.api.settings import Api, Settings, Xds
from routing.mesh.api.sqlite_store import SqliteStore
from routing.mesh.api.store import Record, Store, StoreError
from routing.xds.cloud_map import CloudMapTerms
from routing.xds.issuer import IssuerFiles
from routing.xds.plane import ControlPlane, ServerTls, StartError, Terms
from runtime import clock, garbage
from runtime.settings_file import split_bind

SERVICE: Final = "appmesh"
FILE: Final = "mesh.sqlite"


def run(found: Settings, log: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; raises `StartError`, and `SettingsError` of the file of keys."""
    uvloop.run(_serve(found, log))


async def _serve(found: Settings, log: Any) -> None:
    settings = found.api
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
    store = _store(settings)
    with contextlib.closing(store), ThreadPoolExecutor(max_workers=1) as worker:
        async with _proxies(found.xds, store, worker, log) as changed:
            api = MeshApi(store, settings)
            door = Door(api, callers, worker=worker, unix_s=clock.unix_s, changed=changed, log=log)
            await _listen(settings, door, callers, ending, log)
    log.info("mesh_api_stopped")


@contextlib.asynccontextmanager
async def _proxies(
    settings: Xds, store: Store, worker: ThreadPoolExecutor, log: Any
) -> AsyncIterator[Callable[[], None]]:
    """Serve proxies, where that is asked for; yields who hears that the API changed something."""
    if not settings.bind:
        yield lambda: None
        return

    async def kept() -> list[Record]:
        return await asyncio.get_running_loop().run_in_executor(worker, store.all)

    async def revision() -> int:
        return await asyncio.get_running_loop().run_in_executor(worker, store.revision)

    plane = ControlPlane(_terms(settings), log)
    endpoints = Path(settings.endpoints_file) if settings.endpoints_file else None
    serving = Serving(plane, kept, revision, endpoints=endpoints, log=log)
    await serving.load()
    garbage.settle()
    await plane.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(serving.run()), tasks.create_task(plane.run())]
            yield serving.changed
            for each in following:
                each.cancel()
    finally:
        await plane.stop()


def _terms(settings: Xds) -> Terms:
    files = settings.certificate_file, settings.key_file, settings.authority_file
    certificate, key, authority = map(Path, files)
    return Terms(
        bind=settings.bind,
        tls=ServerTls(certificate, key, authority) if settings.certificate_file else None,
        trust_domain=settings.trust_domain,
        streams_max=settings.streams_max,
        status_socket=Path(settings.status_socket),
        issuer=_authority(settings),
        certificate_ttl_s=settings.certificate_ttl_s,
        cloud_map=_cloud_map(settings),
    )


def _cloud_map(settings: Xds) -> CloudMapTerms | None:
    if not settings.cloud_map_regions:
        return None
    return CloudMapTerms(settings.cloud_map_regions, settings.cloud_map_endpoint, settings.cloud_map_poll_s)


def _authority(settings: Xds) -> IssuerFiles | None:
    if not settings.issuer_certificate_file:
        return None
    bundle = Path(settings.trust_bundle_file) if settings.trust_bundle_file else None
    return IssuerFiles(Path(settings.issuer_certificate_file), Path(settings.issuer_key_file), bundle)


def _store(settings: Api) -> Store:
    try:
        if settings.store == "dynamodb":
            return _in_a_table(settings)
        folder = Path(settings.data_dir)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return SqliteStore(folder / FILE)
    except (OSError, StoreError) as error:
        raise StartError(str(error)) from error


def _in_a_table(settings: Api) -> Store:
    from routing.mesh.api.dynamodb_store import DynamoDbStore  # noqa: PLC0415  # botocore takes its time

    region = settings.table_region or settings.region
    return DynamoDbStore(settings.table, region=region, endpoint=settings.table_endpoint)


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
