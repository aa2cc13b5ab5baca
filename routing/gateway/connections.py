"""`/@connections/{id}`: services push to a client, ask after it, close it, as with AWS API Gateway.

The answers are those of the service model `apigatewaymanagementapi`, so that its clients (boto3) raise their
typed exceptions. A caller reaches connections of its own tenant; to it those of others are gone (410), as are
unknown ones.
"""

from __future__ import annotations

import math
import secrets
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web

from routing.gateway.open_socket import Ending
from routing.gateway.refused import Refused
from routing.gateway.socket_metrics import Pushed, SocketMetrics
from routing.gateway.sockets import Connection, Sockets
from routing.tenancy.principal import Principal

SCOPE: Final = "connections:write"
METHODS: Final = frozenset({"GET", "POST", "DELETE"})
REFUSALS: Final = {
    401: (403, "ForbiddenException"),
    403: (403, "ForbiddenException"),
    413: (413, "PayloadTooLargeException"),
    429: (429, "LimitExceededException"),
}
"""By the status of a refusal: that of the service, which has no 401, and its exception."""


class Connections:
    """Answers calls of services about the connections of `sockets`."""

    def __init__(self, sockets: Sockets, *, metrics: SocketMetrics) -> None:
        self._sockets = sockets
        self._metrics = metrics

    async def handle(
        self, request: web.BaseRequest, principal: Principal, body: bytes | None = None
    ) -> web.Response:
        """Answer a call; the id of the connection is the last segment of the path.

        `body` is that of the request, where it has been read already.
        """
        if SCOPE not in principal.scopes:
            return self.forbidden(f"the caller lacks the scope {SCOPE}")
        connection = self._sockets.find(connection_id(request))
        if connection is None or not principal.may_act_for(connection.peer.principal.tenant):
            return self._answer(Pushed.GONE)
        match request.method:
            case "POST":
                return await self._push(request, connection, body)
            case "GET":
                self._metrics.pushed(Pushed.OK)
                return web.json_response(body=_ENCODE(information(connection)), headers=_request_id())
            case "DELETE":
                connection.open.end(Ending.DELETED)
                self._metrics.pushed(Pushed.OK)
                return web.Response(status=204, headers=_request_id())
            case _:
                return web.Response(status=405, headers={"Allow": ", ".join(sorted(METHODS))})

    def forbidden(self, why: str) -> web.Response:
        """Return the answer to a caller who is not let in, be it unknown or without the scope."""
        self._metrics.pushed(Pushed.FORBIDDEN)
        return _error(403, "ForbiddenException", why)

    def refused(self, why: Refused) -> web.Response:
        """Return the answer to a call that the gateway refuses before it comes here."""
        status, name = REFUSALS.get(why.status, (why.status, "BadRequestException"))
        if status == 403:
            self._metrics.pushed(Pushed.FORBIDDEN)
        if status >= 500:
            name = "ServiceUnavailableException" if status == 503 else "InternalServerErrorException"
        return _error(status, name, why.detail, retry_after_s=math.ceil(why.retry_after_s))

    async def _push(
        self, request: web.BaseRequest, connection: Connection, body: bytes | None
    ) -> web.Response:
        bytes_max = connection.api.message_bytes_max
        data = await _body(request, bytes_max) if body is None else body
        if data is None or len(data) > bytes_max:
            return self._answer(Pushed.TOO_LARGE)
        if connection.open.ending is not None:
            return self._answer(Pushed.GONE)
        if not connection.open.offer(_message(data)):
            return self._answer(Pushed.FULL)
        self._sockets.pushed_to(connection)
        return self._answer(Pushed.OK)

    def _answer(self, outcome: Pushed) -> web.Response:
        self._metrics.pushed(outcome)
        match outcome:
            case Pushed.GONE:
                return _error(410, "GoneException", "")
            case Pushed.TOO_LARGE:
                return _error(413, "PayloadTooLargeException", "the message is too big")
            case Pushed.FULL:
                return _error(429, "LimitExceededException", "the client reads too slowly", retry_after_s=1)
            case _:
                return web.Response(status=200, headers=_request_id())


_ENCODE: Final = msgspec.json.encode


def connection_id(request: web.BaseRequest) -> str:
    """Return the id that the path of a request ends with."""
    return unquote(request.raw_path.partition("?")[0].rpartition("/")[2])


def information(connection: Connection) -> dict[str, object]:
    """Return what GET says of a connection."""
    return {
        "connectedAt": _iso(connection.peer.connected_ms),
        "lastActiveAt": _iso(connection.last_active_ms),
        "identity": {"sourceIp": connection.peer.source_ip, "userAgent": connection.peer.user_agent},
    }


async def _body(request: web.BaseRequest, bytes_max: int) -> bytes | None:
    """Return the body of a request, or None when it is too long."""
    if (request.content_length or 0) > bytes_max:
        return None
    if request._read_bytes is not None:  # the signature was checked with it
        return request._read_bytes if len(request._read_bytes) <= bytes_max else None
    data = bytearray()
    async for part in request.content.iter_any():
        data += part
        if len(data) > bytes_max:
            return None
    return bytes(data)


def _message(data: bytes) -> str | bytes:
    """Return data as a text message, unless it is not text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _iso(unix_ms: int) -> str:
    return (
        datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _request_id() -> dict[str, str]:
    return {"x-amzn-RequestId": secrets.token_hex(16)}


def _error(status: int, name: str, text: str, *, retry_after_s: int = 0) -> web.Response:
    headers = {**_request_id(), "x-amzn-ErrorType": name}
    if retry_after_s:
        headers["Retry-After"] = str(retry_after_s)
    return web.json_response(
        status=status, body=msgspec.json.encode({"message": text} if text else {}), headers=headers
    )
