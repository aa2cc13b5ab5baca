"""Asks an App Mesh API for all that it keeps, and changes it: ours, or another with the same paths.

boto3 knows App Mesh's own operations; policies have paths of the same form, so that all are asked for alike.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import botocore.session
import msgspec
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from yarl import URL

from routing.mesh.api.operations import COLLECTIONS, VERSION, Collection
from routing.mesh.api.records import collection_of, made
from routing.mesh.plan import Change, Specs

AT_ONCE: Final = 16
DEADLINE_S: Final = 30
SERVICE: Final = "appmesh"
MISSING: Final = 404


class Refused(Exception):
    """The API does not do it; the text has its error and its message."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.missing = status == MISSING or "NotFound" in code
        """Whether there is no such thing; moto says so with 400."""


class MeshClient:
    """A client to enter; calls are signed as AWS's tools sign them. Raises Refused."""

    def __init__(self, url: str, region: str) -> None:
        session = botocore.session.get_session()
        self._url = url.rstrip("/")
        try:
            found = os.environ.get("AWS_REGION") or session.get_config_variable("region")
            self._region = region or found or ""
            self._credentials = session.get_credentials()
        except BotoCoreError as error:
            raise Refused("NoCredentials", str(error), 0) from error
        if self._credentials is None:
            raise Refused("NoCredentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", 0)
        if not self._region:
            raise Refused("NoRegion", "set AWS_REGION, or give --region", 0)
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> Self:
        """Open connections when they are needed."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        await self._session.close()

    async def meshes(self) -> list[str]:
        """Return the names of all meshes."""
        return await self._names(COLLECTIONS["meshes"], ())

    async def kept(self, meshes: Iterable[str]) -> Specs:
        """Return the specs of all that is in these meshes; of a mesh that is not there, nothing."""
        found: dict[str, Any] = {}
        for mesh in meshes:
            try:
                answer = await self._call("GET", self._path(COLLECTIONS["meshes"], (mesh,)))
            except Refused as error:
                if not error.missing:
                    raise
                continue
            found[f"mesh/{mesh}"] = _normal(f"mesh/{mesh}", answer["spec"])
            for collection in (each for each in COLLECTIONS.values() if each.parents == ("mesh",)):
                found |= await self._described(collection, (mesh,))
            for collection in (each for each in COLLECTIONS.values() if len(each.parents) > 1):
                kind = collection.parents[-1]
                parents = [path.split("/")[-1] for path in found if path.split("/")[-2] == kind]
                for parent in parents:
                    found |= await self._described(collection, (mesh, parent))
        return found

    async def do(self, change: Change) -> None:
        """Do a change."""
        collection, names = collection_of(change.path), tuple(change.path.split("/")[1::2])
        if change.verb == "delete":
            await self._call("DELETE", self._path(collection, names))
        elif change.verb == "update":
            await self._call("PUT", self._path(collection, names), {"spec": change.spec})
        else:
            body = {collection.member: names[-1], "spec": change.spec}
            await self._call("PUT", self._path(collection, names[:-1]), body)

    async def _described(self, collection: Collection, names: tuple[str, ...]) -> dict[str, Any]:
        try:
            listed = await self._names(collection, names)
        except Refused as error:
            if error.missing:
                return {}  # of an API that does not know the kind: the parent is there
            raise
        kinds = (*collection.parents, collection.kind)

        async def one(name: str) -> tuple[str, Any]:
            full = (*names, name)
            answer = await self._call("GET", self._path(collection, full))
            path = "/".join(f"{kind}/{each}" for kind, each in zip(kinds, full, strict=True))
            return path, _normal(path, answer["spec"])

        return dict(await asyncio.gather(*[one(name) for name in listed]))

    async def _names(self, collection: Collection, names: tuple[str, ...]) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            query = f"?nextToken={quote(token, safe='')}" if token else ""
            answer = await self._call("GET", self._path(collection, names) + query)
            found += [each[collection.member] for each in answer[collection.plural]]
            token = answer.get("nextToken") or ""
            if not token:
                return found

    def _path(self, collection: Collection, names: tuple[str, ...]) -> str:
        """Return the path of a collection, or of a resource where the last name is there."""
        parts = [VERSION]
        plurals = {each.kind: each.plural for each in COLLECTIONS.values()}
        for index, kind in enumerate((*collection.parents, collection.kind)):
            alone = kind in collection.parents[1:]  # a parent within the path is in the singular
            parts.append(kind if alone else plurals[kind])
            if index < len(names):
                parts.append(quote(names[index], safe=""))
        return "/".join(parts)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = msgspec.json.encode(body) if body is not None else b""
        url = f"{self._url}/{path}"
        request = AWSRequest(method=method, url=url, data=data, headers={"Content-Type": "application/json"})
        SigV4Auth(self._credentials, SERVICE, self._region).add_auth(request)
        headers = dict(request.headers)
        async with self._gate:
            try:
                async with self._session.request(
                    method, URL(url, encoded=True), data=data, headers=headers
                ) as answer:
                    return _read(answer.status, answer.headers, await answer.read())
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or f"no answer in {DEADLINE_S} s"
                raise Refused("Unreachable", f"{self._url}: {why}", 0) from error


def _read(status: int, headers: Any, body: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused("UnreadableAnswer", f"status {status}", status) from error
    if status >= 400:  # of HTTP
        said = headers.get("x-amzn-ErrorType") or answer.get("__type") or answer.get("code")
        code = str(said or f"status {status}").partition(":")[0]
        raise Refused(code, str(answer.get("message", "")), status)
    return answer


def _normal(path: str, spec: dict[str, Any]) -> Any:
    """Return a spec as ours are; one that cannot be read, as it is."""
    try:
        found = made(collection_of(path), path.split("/")[1::2], spec)
    except msgspec.ValidationError:
        return spec
    return msgspec.to_builtins(getattr(found, "spec"))  # noqa: B009  # of every kind
