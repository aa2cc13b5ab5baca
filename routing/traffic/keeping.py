"""Where a route and the tags of a shift are kept, which is the App Mesh API."""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from routing.aws import AwsClient, AwsError, Failure
from routing.traffic.route import RouteName

CALL_S: Final = 5.0
TAGS_MAX: Final = 50
LISTS: Final = {
    "meshes": "list_meshes",
    "virtualRouters": "list_virtual_routers",
    "routes": "list_routes",
}


class Unavailable(Exception):
    """The route cannot be read or written now; the text says why."""


class Missing(Unavailable):
    """There is no such route."""


class Kept(msgspec.Struct, frozen=True):
    """A route as it is kept."""

    spec: dict[str, Any]
    tags: dict[str, str]


class Keeping(Protocol):
    """One route, and its tags. Each call raises Unavailable."""

    async def read(self) -> Kept:
        """Return the route as it is now."""

    async def write(self, spec: dict[str, Any]) -> None:
        """Change the route."""

    async def note(self, tags: dict[str, str]) -> None:
        """Add tags to the route, all of them or none."""

    @property
    def where(self) -> str:
        """Where it is kept, for people."""


async def called(client: AwsClient, operation: str, where: str, **arguments: Any) -> dict[str, Any]:
    """Call the App Mesh API at `where`, and return its answer; raises Unavailable."""
    try:
        return await client.call(operation, deadline_s=CALL_S, **arguments)
    except AwsError as error:
        if error.code == "NotFoundException":
            raise Missing(f"{where} has none of these: {' '.join(map(str, arguments.values()))}") from error
        of = where if error.failure in {Failure.CONNECT, Failure.TIMEOUT} else operation
        raise Unavailable(f"{of}: {error.code}") from error


async def names_in(client: AwsClient, where: str) -> list[RouteName]:
    """Return all routes that the App Mesh API keeps; raises Unavailable."""
    found = []
    for mesh in await _listed(client, where, "meshes", "meshName"):
        names = {"meshName": mesh}
        for router in await _listed(client, where, "virtualRouters", "virtualRouterName", **names):
            names = {"meshName": mesh, "virtualRouterName": router}
            listed = await _listed(client, where, "routes", "routeName", **names)
            found += [RouteName(mesh, router, route) for route in listed]
    return found


async def _listed(client: AwsClient, where: str, plural: str, member: str, **names: str) -> list[str]:
    operation = LISTS[plural]
    page: dict[str, Any] = {}
    found: list[str] = []
    while True:
        answer = await called(client, operation, where, **names, **page)
        try:
            found += [each[member] for each in answer[plural]]
        except (KeyError, TypeError) as error:
            raise Unavailable(f"{where}: its answer has no {error}") from error
        if not answer.get("nextToken"):
            return found
        page = {"nextToken": answer["nextToken"]}


class ApiKeeping:
    """A route that the App Mesh API keeps."""

    def __init__(self, client: AwsClient, name: RouteName, endpoint: str) -> None:
        self._client = client
        self._name = name
        self._names = {"meshName": name.mesh, "virtualRouterName": name.router, "routeName": name.route}
        self._endpoint = endpoint
        self._arn = ""

    @property
    def where(self) -> str:
        """The address of the API."""
        return self._endpoint

    async def read(self) -> Kept:
        """Describe the route, and list its tags."""
        described = await self._call("describe_route", **self._names)
        try:
            self._arn = described["route"]["metadata"]["arn"]
            listed = await self._call("list_tags_for_resource", resourceArn=self._arn, limit=TAGS_MAX)
            return Kept(described["route"]["spec"], {each["key"]: each["value"] for each in listed["tags"]})
        except (KeyError, TypeError) as error:
            raise Unavailable(f"{self._endpoint}: its answer has no {error}") from error

    async def write(self, spec: dict[str, Any]) -> None:
        """Update the route."""
        await self._call("update_route", **self._names, spec=spec)

    async def note(self, tags: dict[str, str]) -> None:
        """Tag the route, which was read before."""
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        await self._call("tag_resource", resourceArn=self._arn, tags=listed)

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await called(self._client, operation, self._endpoint, **arguments)
        except Missing as error:
            raise Missing(f"there is no {self._name.path}") from error
