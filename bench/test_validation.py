"""What the API gateway adds to a request by looking at it and by counting it: deciders only, no socket."""

from __future__ import annotations

from typing import Any

import msgspec
from multidict import MultiDict

from routing.gateway import openapi
from routing.gateway.analytics import Answered, Counts
from routing.gateway.documents import Documents, parse
from routing.gateway.routes_file import Authorizer, Discovery, Endpoint, Route, Routes, Upstream
from routing.gateway.validation import Validation

NAME = {"type": "string", "pattern": "^[A-Za-z0-9._~-]{1,128}$"}
DEVICE: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Devices", "version": "1"},
    "paths": {
        "/v1/tenants/{tenant}/devices": {
            "post": {
                "operationId": "create",
                "parameters": [
                    {"name": "tenant", "in": "path", "required": True, "schema": NAME},
                    {"name": "dry_run", "in": "query", "schema": {"type": "boolean"}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewDevice"}}},
                },
                "responses": {"201": {"description": "Made."}},
            }
        }
    },
    "components": {
        "schemas": {
            "NewDevice": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": NAME,
                    "groups": {"type": "array", "maxItems": 32, "items": NAME},
                    "attributes": {
                        "type": "object",
                        "maxProperties": 64,
                        "additionalProperties": {"type": "string", "maxLength": 256},
                    },
                    "expires": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
                },
            }
        }
    },
}
ROUTE = Route(
    name="create",
    method="POST",
    path="/v1/tenants/{tenant}/devices",
    upstream="device",
    operation="device#create",
    authorizers=["keys"],
    scopes=["devices:write"],
)
UPSTREAM = Upstream(discovery=Discovery(kind="static", endpoints=[Endpoint(address="127.0.0.1:1")]))
ROUTES = Routes(
    routes=[ROUTE],
    upstreams={"device": UPSTREAM},
    authorizers={"keys": Authorizer(kind="api_key")},
    documents={"device": "device.json"},
)
DOCUMENTS = Documents({"device": parse("device", DEVICE)})
BODY = msgspec.json.encode(
    {
        "name": "pump-17",
        "groups": ["hall-1", "pumps"],
        "attributes": {"model": "P-200", "site": "north", "firmware": "4.2.1"},
        "expires": "2027-01-31T00:00:00Z",
    }
)


def test_device_create(benchmark: Any) -> None:
    validation = Validation(ROUTES, DOCUMENTS)
    query = MultiDict(dry_run="true")
    problems = benchmark(
        validation.validate, ROUTE, {"tenant": "acme"}, query, "application/json; charset=utf-8", BODY
    )
    assert problems == []


def test_device_create_refused(benchmark: Any) -> None:
    validation = Validation(ROUTES, DOCUMENTS)
    body = BODY.replace(b'"hall-1"', b"17").replace(b"2027", b"soon")
    problems = benchmark(
        validation.validate, ROUTE, {"tenant": "acme"}, MultiDict(), "application/json", body
    )
    assert len(problems) == 2


def test_record(benchmark: Any) -> None:
    counts = Counts(10_000)
    answered = [
        Answered(
            route="create",
            tenant=f"tenant-{number % 50}",
            fingerprint=f"key-{number}",
            status=201,
            refused="",
            elapsed_s=0.0005 * (number % 40 + 1),
            bytes_in=len(BODY),
            bytes_out=300,
        )
        for number in range(1000)
    ]

    def record() -> None:
        for one in answered:
            counts.record(one, 1_700_000_000.0)

    benchmark(record)
    assert len(counts.take()[0]) == len(answered)


def test_published(benchmark: Any) -> None:
    document = benchmark(openapi.published, ROUTES, DOCUMENTS, "v1", server="/", title="Example")
    assert list(document["paths"]) == [ROUTE.path]
