"""What the gateway itself answers, as an OpenAPI document: the operations of internal upstreams.

A route to an internal upstream names one in its `operation`; those that are not here (WebSocket APIs, which
OpenAPI cannot say) are not published.
"""

from __future__ import annotations

from typing import Final

from routing.gateway.documents import Document, Node, parse
from routing.gateway.routes_file import Route

NAME: Final = "gateway"
STEPS: Final = ("minute", "hour", "day")
GROUPS: Final = ("route", "key", "tenant")
ROWS_MAX: Final = 1000
LATENCY: Final = ("p50", "p90", "p99", "mean")


def document() -> Document:
    """Return the document of the gateway's own operations."""
    return parse(NAME, CONTENT)


def operation_of(route: Route) -> str:
    """Return which of the gateway's own operations a route is for: its `operation`, else its name."""
    return route.operation.rpartition("#")[2] or route.name


def _query(name: str, text: str, schema: Node) -> Node:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _answer(text: str, schema: Node, media_type: str = "application/json") -> Node:
    return {"200": {"description": text, "content": {media_type: {"schema": schema}}}}


def _senseless() -> Node:
    content = {"application/problem+json": {"schema": {"type": "object"}}}
    return {"422": {"description": "The times or the cursor make no sense; see detail.", "content": content}}


def _object(properties: Node, *optional: str, description: str = "") -> Node:
    required = [name for name in properties if name not in optional]
    said = {"description": description} if description else {}
    return {"type": "object", **said, "required": required, "properties": properties}


def _page_of(row: str) -> Node:
    return _object(
        {
            "rows": {"type": "array", "maxItems": ROWS_MAX, "items": {"$ref": f"#/components/schemas/{row}"}},
            "next": {
                "type": ["string", "null"],
                "description": "The cursor of the next rows, if there are more.",
            },
        }
    )


TEXT: Final[Node] = {"type": "string"}
COUNT: Final[Node] = {"type": "integer", "minimum": 0}
TIME: Final[Node] = {"type": "string", "format": "date-time"}
NAMED: Final[Node] = {"type": "string", "minLength": 1, "maxLength": 256}
FROM_TO: Final = [
    _query("from", "From when, as 2026-01-31T00:00:00Z; a day ago, if left out.", TIME),
    _query("to", "Until when; now, if left out.", TIME),
    _query("tenant", "One tenant; only an operator may name another than its own.", NAMED),
]
PAGING: Final = [
    _query("limit", "How many rows at most.", {"type": "integer", "minimum": 1, "maximum": ROWS_MAX}),
    _query("cursor", "Where the last page ended.", {"type": "string", "minLength": 1, "maxLength": 1024}),
]
CONTENT: Final[Node] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Gateway",
        "description": "What the API gateway says of itself and of its callers.",
        "version": "1",
    },
    "paths": {
        "/usage": {
            "get": {
                "operationId": "usage",
                "summary": "How the API was used",
                "description": "Calls, errors, refusals, bytes and latency by time and route, key or tenant.",
                "parameters": [
                    *FROM_TO,
                    _query("by", "What a row is of.", {"enum": list(GROUPS), "default": "route"}),
                    _query("step", "How long a row is.", {"enum": list(STEPS), "default": "hour"}),
                    *PAGING,
                ],
                "responses": _answer(
                    "Rows by time, then by name.", {"$ref": "#/components/schemas/UsagePage"}
                )
                | _senseless(),
            }
        },
        "/usage/deprecated": {
            "get": {
                "operationId": "usage-deprecated",
                "summary": "Who still uses deprecated routes",
                "parameters": [*FROM_TO, *PAGING],
                "responses": _answer(
                    "Rows by route, tenant and key.", {"$ref": "#/components/schemas/DeprecatedUsePage"}
                )
                | _senseless(),
            }
        },
        "/whoami": {
            "get": {
                "operationId": "whoami",
                "summary": "Whom the gateway takes the caller for",
                "responses": _answer("The caller.", {"$ref": "#/components/schemas/Caller"}),
            }
        },
        "/openapi.json": {
            "get": {
                "operationId": "openapi",
                "summary": "This document",
                "responses": _answer("OpenAPI 3.1.", {"type": "object"}),
            }
        },
        "/docs": {
            "get": {
                "operationId": "docs",
                "summary": "This document to read",
                "responses": _answer("A page.", TEXT, "text/html"),
            }
        },
    },
    "components": {
        "schemas": {
            "UsagePage": _page_of("Usage"),
            "DeprecatedUsePage": _page_of("DeprecatedUse"),
            "Usage": _object(
                {
                    "at": TIME,
                    "name": {**TEXT, "description": "The route, key or tenant, or `(other)`."},
                    "calls": COUNT,
                    "client_errors": COUNT,
                    "server_errors": COUNT,
                    "refused": {"type": "object", "additionalProperties": COUNT},
                    "bytes_in": COUNT,
                    "bytes_out": COUNT,
                    "latency_s": _object({name: {"type": "number", "minimum": 0} for name in LATENCY}),
                }
            ),
            "DeprecatedUse": _object(
                {
                    "route": TEXT,
                    "tenant": TEXT,
                    "key": TEXT,
                    "calls": COUNT,
                    "last_call": TIME,
                    "agent": {**TEXT, "description": "The product that called last, of its User-Agent."},
                    "since": TEXT,
                    "sunset": TEXT,
                }
            ),
            "Caller": _object(
                {
                    "tenant": TEXT,
                    "name": TEXT,
                    "scopes": {"type": "array", "items": TEXT},
                    "credential": TEXT,
                    "fingerprint": TEXT,
                    "plan": TEXT,
                    "device": TEXT,
                    "expires": {"type": ["string", "null"]},
                },
                "fingerprint",
                "plan",
                "device",
                "expires",
            ),
        }
    },
}
