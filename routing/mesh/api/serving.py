"""What the API keeps, served to proxies: read after every change, and told to the control plane.

A mesh that is not consistent, as one that is being changed may be for a moment, is not served: its last good
state is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from routing.mesh.api.records import meshes_in
from routing.mesh.api.store import Record, StoreError
from routing.mesh.meshes import Meshes
from routing.mesh.problem import Severity
from routing.mesh.snapshot import MeshSnapshot
from routing.xds.configurations import Endpoints, Unusable, found_in, signature
from routing.xds.plane import ControlPlane

TOGETHER_S: Final = 0.05
"""How long changes are waited for that belong together."""
OTHERS_S: Final = 1.0
POLL_S: Final = 0.25


class Serving:
    """Tells a control plane of what `kept` returns, when the API changed it or the `revision` is another."""

    def __init__(
        self,
        plane: ControlPlane,
        kept: Callable[[], Awaitable[list[Record]]],
        revision: Callable[[], Awaitable[int]],
        *,
        endpoints: Path | None,
        log: Any,
    ) -> None:
        self._plane = plane
        self._kept = kept
        self._revision = revision
        self._endpoints = endpoints
        self._log = log
        self._changed = asyncio.Event()
        self._said: dict[str, str] = {}

    def changed(self) -> None:
        """Hear that the API changed something."""
        self._changed.set()

    async def load(self) -> None:
        """Serve what is kept; raises StoreError."""
        self._changed.clear()
        meshes = await asyncio.to_thread(meshes_in, await self._kept())
        served = self._served(meshes)
        await self._plane.replace(served, self._found(served))
        self._log.info("mesh_served", meshes=len(served), resources=len(meshes.resources))

    async def run(self) -> None:
        """Follow changes, for as long as it is not cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_meshes())
            tasks.create_task(self._follow_others())
            if self._endpoints is not None:
                tasks.create_task(self._follow_endpoints(self._endpoints))

    async def _follow_meshes(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(TOGETHER_S)
            try:
                await self.load()
            except StoreError as error:
                self._log.error("mesh_store_failed", why=str(error))
                self._changed.set()
                await asyncio.sleep(1)

    async def _follow_others(self) -> None:
        """Hear of what other processes change in the same store."""
        seen = None
        while True:
            with contextlib.suppress(StoreError):  # which is said where a call fails for it
                now = await self._revision()
                if now != seen:
                    seen = now
                    self._changed.set()
            await asyncio.sleep(OTHERS_S)

    async def _follow_endpoints(self, file: Path) -> None:
        seen = await asyncio.to_thread(signature, file)
        while True:
            await asyncio.sleep(POLL_S)
            now = await asyncio.to_thread(signature, file)
            if now != seen:
                seen = now
                await self._plane.replace_endpoints(self._found(self._plane.meshes))

    def _served(self, meshes: Meshes) -> Mapping[str, MeshSnapshot]:
        """Return the meshes that are consistent, and of the others what was served before."""
        names = {each.mesh_name for each in meshes.resources}
        served = {name: mesh for name, mesh in self._plane.meshes.items() if name in names} | meshes.snapshots
        problems = [each for each in meshes.problems if each.severity is Severity.ERROR]
        for name in sorted(names):
            mine = [str(each) for each in problems if f"{each.resource}/".startswith(f"mesh/{name}/")]
            self._say(name, "" if name in meshes.snapshots else "; ".join(mine))
        return served

    def _found(self, meshes: Mapping[str, MeshSnapshot]) -> Endpoints:
        """Return the endpoints of the file, or what they were where it is wrong."""
        if self._endpoints is None:
            return {}
        try:
            found = found_in(self._endpoints, meshes)
        except Unusable as error:
            self._say(str(self._endpoints), str(error))
            return self._plane.endpoints
        self._say(str(self._endpoints), "")
        return found

    def _say(self, of: str, why: str) -> None:
        """Log what is wrong when it is wrong in another way than before."""
        if why and why != self._said.get(of):
            self._log.warning("mesh_not_served", of=of, why=why)
        self._said[of] = why
