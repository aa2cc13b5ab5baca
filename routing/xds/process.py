"""The control plane over a folder as a process: reads it, serves it, reads it again when it changes.

A folder that is wrong is not served: the last good one is, and the log says once what is wrong.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.mesh.snapshot import MeshSnapshot
from routing.xds.configurations import Endpoints, Unusable, found_in, loaded, signature
from routing.xds.plane import ControlPlane, StartError, Terms
from runtime import garbage

POLL_S: Final = 0.25


class Place(msgspec.Struct, frozen=True):
    """A folder of resources, values for its templates, and a file of endpoints."""

    folder: Path
    parameters: Mapping[str, str]
    endpoints: Path | None

    def signatures(self) -> tuple[str, str]:
        """Return what changes when a resource does, and when endpoints do."""
        return signature(self.folder), "" if self.endpoints is None else signature(self.endpoints)

    def meshes(self) -> Mapping[str, MeshSnapshot]:
        """Read the folder; raises Unusable."""
        return loaded(self.folder, self.parameters)

    def found(self, meshes: Mapping[str, MeshSnapshot]) -> Endpoints:
        """Read the endpoints; raises Unusable."""
        return {} if self.endpoints is None else found_in(self.endpoints, meshes)


async def serve(place: Place, terms: Terms, log: Any) -> None:
    """Serve until SIGTERM or SIGINT; raises StartError."""
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    seen = place.signatures()
    try:
        meshes = place.meshes()
        endpoints = place.found(meshes)
    except Unusable as error:
        raise StartError(str(error)) from error
    plane = ControlPlane(terms, log)
    await plane.replace(meshes, endpoints)
    garbage.settle()
    await plane.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(_reload(place, plane, seen, log)), tasks.create_task(plane.run())]
            await ending.wait()
            for each in following:
                each.cancel()
    finally:
        await plane.stop()


async def _reload(place: Place, plane: ControlPlane, seen: tuple[str, str], log: Any) -> None:
    """Serve what the folder has, once it stays the same for a moment: files are written one after another."""
    before = seen
    while True:
        await asyncio.sleep(POLL_S)
        now = await asyncio.to_thread(place.signatures)
        if now == before and now != seen:
            try:
                if now[0] == seen[0]:
                    await plane.replace_endpoints(await asyncio.to_thread(place.found, plane.meshes))
                else:
                    meshes = await asyncio.to_thread(place.meshes)
                    await plane.replace(meshes, await asyncio.to_thread(place.found, meshes))
                log.info("mesh_reloaded")
            except Unusable as error:
                log.warning("mesh_not_reloaded", why=str(error))
            seen = now
        before = now
