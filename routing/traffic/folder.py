"""A route in a folder of App Mesh resources, as `mesh xds` serves it.

Its weights are changed in the document where they stand, which is written beside and renamed. Tags are in a
file of their own beside it, which is not read as a resource.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from routing.mesh.documents.editing import NotEditable, at, renumbered, route_in
from routing.mesh.documents.reading import files_of, read
from routing.mesh.documents.text import Unreadable, documents_in
from routing.mesh.model.resources import Route
from routing.traffic import route as routes
from routing.traffic.keeping import Kept, Missing, Unavailable
from routing.traffic.route import RouteName


class FolderKeeping:
    """A route in one of the documents of a folder, or of one file."""

    def __init__(self, place: Path, name: RouteName) -> None:
        self._place = place
        self._name = name
        self._names = {"meshName": name.mesh, "virtualRouterName": name.router, "routeName": name.route}
        self._tags = route_tags(place, name)
        self._file: Path | None = None

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._place)

    async def read(self) -> Kept:
        """Read the document that has the route, and the file of tags."""
        return await asyncio.to_thread(self._read)

    async def write(self, spec: dict[str, Any]) -> None:
        """Change the weights in the document."""
        await asyncio.to_thread(self._write, routes.weights(spec))

    async def note(self, tags: dict[str, str]) -> None:
        """Add tags."""
        await asyncio.to_thread(self._note, tags)

    def _read(self) -> Kept:
        _, spec, _ = self._found()
        return Kept(spec, self._noted())

    def _write(self, weights: tuple[int, ...]) -> None:
        file, spec, path = self._found()
        kind = routes.kind(spec)
        targets = (*path, "spec", kind, "action", "weightedTargets")
        changes = {(*targets, place, "weight"): weight for place, weight in enumerate(weights)}
        try:
            _replace(file, renumbered(file.read_bytes(), file.suffix, changes))
        except (NotEditable, Unreadable, OSError) as error:
            raise Unavailable(f"{file}: {error}") from error

    def _note(self, tags: dict[str, str]) -> None:
        try:
            _replace(self._tags, msgspec.json.encode(self._noted() | tags))
        except OSError as error:
            raise Unavailable(f"{self._tags}: {error}") from error

    def _noted(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._tags.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise Unavailable(f"{self._tags}: {error}") from error

    def _found(self) -> tuple[Path, dict[str, Any], tuple[int | str, ...]]:
        """Return the file, the route as it stands there, and where; it is looked for where it was first."""
        try:
            files = files_of(self._place)
            for file in [self._file, *files] if self._file in files else files:
                assert file is not None
                with contextlib.suppress(Unreadable):
                    documents = documents_in(file.read_bytes(), file.suffix)
                    if (path := route_in(documents, self._names)) is not None:
                        self._file = file
                        return file, self._checked(file, at(documents, path)), path
            elsewhere = [
                each.file for each in read(self._place, {}).found if each.resource.path == self._name.path
            ]
        except OSError as error:
            raise Unavailable(f"{self._place}: {error}") from error
        if elsewhere:
            raise Missing(
                f"{elsewhere[0]}: {self._name.path} is in a CloudFormation template: change it there, "
                "or keep the route as a document of its own"
            )
        raise Missing(f"{self._place} has no {self._name.path}, in a document of its own")

    def _checked(self, file: Path, resource: dict[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = resource["spec"]
        try:
            msgspec.convert(self._names | {"spec": spec}, Route)
        except msgspec.ValidationError as error:
            raise Unavailable(f"{file}: {self._name.path}: {error}") from error
        return spec


def names_in(place: Path) -> list[RouteName]:
    """Return the routes in a folder at which something was noted; raises Unavailable."""
    try:
        resources = [each.resource for each in read(place, {}).found]
    except OSError as error:
        raise Unavailable(f"{place}: {error}") from error
    found = [
        RouteName(each.mesh_name, each.virtual_router_name, each.route_name)
        for each in resources
        if isinstance(each, Route)
    ]
    return [name for name in found if route_tags(place, name).is_file()]


def route_tags(place: Path, name: RouteName) -> Path:
    """Return the file that has the tags of a route."""
    beside = place if place.is_dir() else place.parent
    return beside / f".headworks-shift-{hashlib.sha256(name.path.encode()).hexdigest()[:16]}.json"


def _replace(file: Path, data: bytes) -> None:
    """Write a file as a whole or not at all, with the mode that it has."""
    number, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(number, "wb") as out:
            if file.exists():
                os.fchmod(number, file.stat().st_mode & 0o777)
            out.write(data)
            out.flush()
            os.fsync(number)
        Path(beside).replace(file)
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise
