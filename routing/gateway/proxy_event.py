"""The events of a WebSocket API as JSON, as AWS API Gateway gives them to a proxy integration.

Credentials are left out of the headers, and whatever would claim to come from the gateway.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from multidict import CIMultiDictProxy, MultiMapping

from routing.tenancy.principal import Principal

CONNECT: Final = "$connect"
DISCONNECT: Final = "$disconnect"
DEFAULT: Final = "$default"
RESERVED: Final = frozenset({CONNECT, DISCONNECT, DEFAULT})
STAGE: Final = "default"
LEFT_OUT: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})
OURS: Final = "x-headworks-"
_ENCODE: Final = msgspec.json.Encoder().encode
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)


class EventType(enum.Enum):
    """Why an upstream is called."""

    CONNECT = "CONNECT"
    MESSAGE = "MESSAGE"
    DISCONNECT = "DISCONNECT"


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a client from its handshake."""

    connection_id: str
    api: str
    domain: str
    source_ip: str
    user_agent: str
    principal: Principal
    connected_ms: int


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """One event: which route is called for it, and when."""

    route_key: str
    type: EventType
    request_id: str
    now_ms: int


def connect_event(
    peer: Peer, occasion: Occasion, headers: CIMultiDictProxy[str], query: MultiMapping[str]
) -> bytes:
    """Return the event of a handshake."""
    names = [name for name in dict.fromkeys(headers) if _may_pass(name)]
    queries = list(dict.fromkeys(query))
    return _ENCODE(
        {
            "headers": {name: headers.getall(name)[-1] for name in names},
            "multiValueHeaders": {name: headers.getall(name) for name in names},
            "queryStringParameters": {name: query.getall(name)[-1] for name in queries} or None,
            "multiValueQueryStringParameters": {name: query.getall(name) for name in queries} or None,
            "requestContext": _context(peer, occasion),
            "isBase64Encoded": False,
        }
    )


def message_event(peer: Peer, occasion: Occasion, message: str | bytes) -> bytes:
    """Return the event of a message; a binary one is base64 text."""
    binary = isinstance(message, bytes)
    return _ENCODE(
        {
            "requestContext": _context(peer, occasion, messageId=occasion.request_id),
            "body": base64.b64encode(message).decode() if isinstance(message, bytes) else message,
            "isBase64Encoded": binary,
        }
    )


def disconnect_event(peer: Peer, occasion: Occasion, *, code: int, reason: str) -> bytes:
    """Return the event of a connection that is over."""
    context = _context(peer, occasion, disconnectStatusCode=code, disconnectReason=reason)
    return _ENCODE({"requestContext": context, "isBase64Encoded": False})


def _context(peer: Peer, occasion: Occasion, **more: Any) -> dict[str, Any]:
    now = datetime.fromtimestamp(occasion.now_ms / 1000, UTC)
    principal = peer.principal
    return {
        "routeKey": occasion.route_key,
        "eventType": occasion.type.value,
        "messageDirection": "IN",
        **more,
        "connectionId": peer.connection_id,
        "connectedAt": peer.connected_ms,
        "requestId": occasion.request_id,
        "extendedRequestId": occasion.request_id,
        "requestTime": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "requestTimeEpoch": occasion.now_ms,
        "apiId": peer.api,
        "stage": STAGE,
        "domainName": peer.domain,
        "identity": {"sourceIp": peer.source_ip, "userAgent": peer.user_agent},
        "authorizer": {
            "principalId": principal.name,
            "tenant": principal.tenant,
            "scopes": " ".join(sorted(principal.scopes)),
            "credential": principal.credential.value,
            "device": principal.device,
        },
    }


def error_message(text: str, connection_id: str, request_id: str) -> str:
    """Return what a client hears of a message that came to nothing."""
    return _ENCODE({"message": text, "connectionId": connection_id, "requestId": request_id}).decode()


def selection(message: str | bytes, path: tuple[str, ...]) -> str | None:
    """Return the text that a JSON message has at `path`, or None; other frames than text have none."""
    if isinstance(message, bytes):
        return None
    value: str | msgspec.Raw = message
    try:
        for name in path:
            member = _OBJECT.decode(value).get(name)
            if member is None:
                return None
            value = member
        return _TEXT.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def route_key(message: str | bytes, path: tuple[str, ...], known: Mapping[str, object]) -> str | None:
    """Return the route of a message, or None when not even $default takes it."""
    key = selection(message, path)
    if key is not None and key in known and key not in RESERVED:
        return key
    return DEFAULT if DEFAULT in known else None


def _may_pass(name: str) -> bool:
    lower = name.lower()
    return lower not in LEFT_OUT and not lower.startswith(OURS)
