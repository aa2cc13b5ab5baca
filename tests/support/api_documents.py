"""Documents of two pretend upstreams, and routes to them."""

from __future__ import annotations

from typing import Any

from routing.gateway.documents import Documents, parse
from routing.gateway.routes_file import (
    Authorizer,
    Cache,
    Deprecation,
    Discovery,
    Endpoint,
    Route,
    Routes,
    Upstream,
)

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
DEVICE: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Devices", "description": "Devices and <b>their</b> keys.", "version": "1"},
    "paths": {
        "/v1/tenants/{tenant}/devices": {
            "parameters": [{"$ref": "#/components/parameters/Tenant"}],
            "post": {
                "operationId": "create-device",
                "summary": "Add a device",
                "tags": ["devices"],
                "x-headworks-scope": "devices:write",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/NewDevice"}},
                        "text/csv": {"schema": {"type": "string"}},
                    },
                },
                "responses": {
                    "201": {
                        "description": "Made.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Device"}}},
                    },
                    "400": {"description": "The device makes no sense.", "content": PROBLEM},
                    "401": {"description": "Without a passport.", "content": PROBLEM},
                    "409": {"description": "It is there.", "content": PROBLEM},
                },
            },
            "get": {
                "operationId": "list",
                "summary": "List devices",
                "parameters": [
                    {
                        "name": "limit",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1, "maximum": 100},
                    },
                    {"name": "every_s", "in": "query", "schema": {"type": "number", "exclusiveMinimum": 0}},
                    {"name": "active", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "status", "in": "query", "schema": {"$ref": "#/components/schemas/Status"}},
                    {
                        "name": "metric",
                        "in": "query",
                        "schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
                    },
                    {
                        "name": "cursor",
                        "in": "query",
                        "schema": {"anyOf": [{"type": "string", "maxLength": 8}, {"type": "null"}]},
                    },
                    {"name": "X-Headworks-Identity", "in": "header", "schema": {"type": "string"}},
                    {"name": "If-Match", "in": "header", "schema": {"type": "string"}},
                ],
                "responses": {
                    "200": {
                        "description": "Devices.",
                        "content": {
                            "application/json": {
                                "schema": {"type": "array", "items": {"$ref": "#/components/schemas/Device"}}
                            }
                        },
                    }
                },
            },
        },
    },
    "components": {
        "parameters": {
            "Tenant": {
                "name": "tenant",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"},
            }
        },
        "schemas": {
            "Status": {"enum": ["active", "suspended"]},
            "NewDevice": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"},
                    "status": {"$ref": "#/components/schemas/Status"},
                    "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}},
                    "limit": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]},
                    "example": {"$ref": "#/components/schemas/Status"},
                    "settings": {"type": "object"},
                },
            },
            "Device": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parent": {"$ref": "#/components/schemas/Device"},
                    "value": {"$ref": "#/components/schemas/Value"},
                },
            },
            "Value": {"type": "integer"},
            "Unused": {"type": "object"},
            "Problem": {"type": "object", "properties": {"detail": {"type": "string"}}},
        },
    },
}
DATA: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Data", "version": "1"},
    "paths": {
        "/v1/tenants/{tenant}/devices/{device}/telemetry": {
            "get": {
                "operationId": "list",
                "summary": "Read telemetry",
                "parameters": [
                    {"name": "tenant", "in": "path", "required": True, "schema": {"type": "string"}},
                    {"name": "device", "in": "path", "required": True, "schema": {"type": "string"}},
                    {"name": "metric", "in": "query", "required": True, "schema": {"type": "string"}},
                ],
                "responses": {
                    "200": {
                        "description": "Values.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Value"}}},
                    }
                },
            }
        }
    },
    "components": {"schemas": {"Value": {"type": "object", "properties": {"at": {"type": "number"}}}}},
}
DOCUMENTS = Documents({"device": parse("device", DEVICE), "data": parse("data", DATA)})
HTTP = Upstream(discovery=Discovery(kind="static", endpoints=[Endpoint(address="127.0.0.1:1")]))
CREATE = Route(
    name="create",
    method="POST",
    path="/v1/tenants/{tenant}/devices",
    upstream="device",
    operation="device#create-device",
    authorizers=["people", "keys", "certificates", "partner"],
    scopes=["devices:write"],
)
LIST = Route(
    name="list",
    method="GET",
    path="/v1/tenants/{tenant}/devices",
    upstream="device",
    operation="device#list",
    authorizers=["keys"],
    scopes=["devices:read"],
    cache=Cache(ttl_s=5),
)
TELEMETRY = Route(
    name="telemetry",
    method="GET",
    path="/v1/tenants/{tenant}/devices/{device}/telemetry",
    upstream="data",
    operation="data#list",
    authorizers=["keys"],
    scopes=["telemetry:read"],
    deprecation=Deprecation(since="2026-01-31", sunset="2027-01-31", link="https://example.com/new"),
)
TELEMETRY_2 = Route(
    name="telemetry-v2",
    method="GET",
    path="/v2/tenants/{tenant}/devices/{device}/telemetry",
    upstream="data",
    operation="data#list",
    authorizers=["keys"],
)
FILES = Route(name="files", method="PUT", path="/v1/files/{rest...}", upstream="files", public=True)
OWN = [
    Route(
        name=name,
        method="GET",
        path=path,
        upstream="gateway",
        operation=f"gateway#{name}",
        authorizers=["keys"],
        scopes=["usage:read"],
    )
    for name, path in (
        ("usage", "/v1/usage"),
        ("usage-deprecated", "/v1/usage/deprecated"),
        ("whoami", "/v1/whoami"),
        ("openapi", "/v1/openapi.json"),
        ("docs", "/v1/docs"),
        ("connections", "/v1/@connections/{id}"),
    )
]
ROUTES = Routes(
    routes=[CREATE, LIST, TELEMETRY, TELEMETRY_2, FILES, *OWN],
    upstreams={"device": HTTP, "data": HTTP, "files": HTTP, "gateway": Upstream(kind="internal")},
    authorizers={
        "people": Authorizer(kind="jwt", jwks_file="keys.json"),
        "keys": Authorizer(kind="api_key"),
        "certificates": Authorizer(kind="certificate"),
        "partner": Authorizer(kind="custom", url="http://127.0.0.1:1/", header="X-Partner"),
    },
    documents={"device": "device.json", "data": "data.json"},
)
