"""The operations of a service: what a request is decoded to, and what answers it.

One registration makes the route and its part of the OpenAPI document, so that they cannot differ.
Decoding is strict: an unknown parameter or field is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from aiohttp import web

from services.web.passport import Caller

StateT = TypeVar("StateT")
QueryT = TypeVar("QueryT")
BodyT = TypeVar("BodyT")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
NAME: Final = r"[A-Za-z0-9._~:@=-]{1,128}"
"""What tenants, devices and their like are called, as everywhere in this project."""
JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
BODY_BYTES_MAX: Final = 65_536
HEADER_CHARACTERS_MAX: Final = 256


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of an operation that takes no parameter."""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an operation that takes none; what is sent all the same is refused."""


class Streamed(msgspec.Struct, frozen=True):
    """A body that the handler reads for itself, a piece at a time, from `Asked.request`."""


class Asked(Generic[QueryT, BodyT]):
    """One request, decoded and allowed."""

    __slots__ = ("body", "caller", "path", "query", "request")

    def __init__(
        self, caller: Caller, path: Mapping[str, str], query: QueryT, body: BodyT, request: web.Request
    ) -> None:
        self.caller = caller
        self.path = path
        self.query = query
        self.body = body
        self.request = request
        """For headers and streamed bodies; all else is decoded already."""


class Reply(msgspec.Struct, frozen=True):
    """An answer: `body` is a struct that becomes JSON, or None."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


Handler = Callable[[StateT, Asked[QueryT, BodyT]], Awaitable[Reply | web.StreamResponse]]


class Content(msgspec.Struct, frozen=True):
    """What an answer may hold, for the document: media types with the type of each (None: not JSON)."""

    description: str
    media: dict[str, Any]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. `scope` is what the caller must hold, or empty when any passport will do.

    `answers` maps a status to the type of its JSON, None (no body), or a `Content`; `refusals` maps a
    status to what it means, for what the handler refuses itself. `devices` says whether a caller that is
    a device may use it although the path names no device.
    """

    name: str
    method: Method
    path: str
    handler: Handler[Any, Any, Any]
    summary: str
    description: str
    tag: str
    scope: str
    query: type[msgspec.Struct]
    body: Any
    body_types: tuple[str, ...]
    body_bytes_max: int
    answers: dict[int, Any]
    refusals: dict[int, str]
    headers: dict[str, str]
    devices: bool

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return PARAMETER.findall(self.path)

    @property
    def takes_body(self) -> bool:
        """Whether a body belongs to it."""
        return self.body is not NoBody


class Operations(Generic[StateT]):
    """The operations of one service, whose handlers get its state first.

    `patterns` are those of path parameters by name; one that is not there is a `NAME`.
    """

    def __init__(
        self,
        title: str,
        *,
        description: str,
        patterns: Mapping[str, str] | None = None,
        version: str = "1.0.0",
    ) -> None:
        self.title = title
        self.description = description
        self.version = version
        self._patterns = dict(patterns or {})
        self._operations: dict[tuple[str, str], Operation] = {}

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations.values())

    def pattern(self, parameter: str) -> str:
        """Return what a path parameter must match."""
        return self._patterns.get(parameter, NAME)

    def add(
        self,
        method: Method,
        path: str,
        handler: Handler[StateT, QueryT, BodyT],
        *,
        name: str,
        summary: str,
        tag: str,
        scope: str,
        answers: dict[int, Any],
        query: type[QueryT] = NoQuery,  # type: ignore[assignment]  # the default of a generic argument
        body: type[BodyT] = NoBody,  # type: ignore[assignment]  # the same
        body_types: tuple[str, ...] = (JSON,),
        body_bytes_max: int = BODY_BYTES_MAX,
        refusals: dict[int, str] | None = None,
        headers: dict[str, str] | None = None,
        description: str = "",
        devices: bool = False,
    ) -> None:
        """Register an operation; `name` is its operationId, unique in the service."""
        assert (method, path) not in self._operations, f"{method} {path} is registered twice"
        assert name not in {each.name for each in self}, f"{name} is registered twice"
        assert issubclass(query, msgspec.Struct)
        self._operations[method, path] = Operation(
            name=name,
            method=method,
            path=path,
            handler=handler,
            summary=summary,
            description=description,
            tag=tag,
            scope=scope,
            query=query,
            body=body,
            body_types=body_types,
            body_bytes_max=body_bytes_max,
            answers=answers,
            refusals=refusals or {},
            headers=headers or {},
            devices=devices,
        )
