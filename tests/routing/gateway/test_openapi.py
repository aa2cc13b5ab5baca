from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from routing.gateway import openapi, own_api
from routing.gateway.documents import DocumentError, Documents, parse
from routing.gateway.routes_file import Deprecation, Route, Routes
from tests.support.api_documents import CREATE, DATA, DEVICE, DOCUMENTS, FILES, LIST, ROUTES, TELEMETRY

DEVICES = "/v1/tenants/{tenant}/devices"
V1 = openapi.published(ROUTES, DOCUMENTS, "v1", server="https://api.example.com", title="Example")
V2 = openapi.published(ROUTES, DOCUMENTS, "v2", server="/", title="Example")


def published(*routes: Route, documents: Documents = DOCUMENTS) -> dict[str, Any]:
    few: Routes = msgspec.structs.replace(ROUTES, routes=list(routes))
    return openapi.published(few, documents, "v1", server="/", title="t")


@pytest.mark.parametrize("document", [V1, V2, published()], ids=["v1", "v2", "empty"])
def test_what_is_published_is_openapi_3_1(document: dict[str, Any]) -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(document))
    OpenAPIV31SpecValidator(decoded).validate()


def test_the_document_of_the_gateway_itself_is_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(own_api.CONTENT).validate()


def test_a_version_has_its_own_routes_as_the_gateway_has_them() -> None:
    assert list(V1["paths"]) == [
        DEVICES,
        "/v1/tenants/{tenant}/devices/{device}/telemetry",
        "/v1/files/{rest}",
        "/v1/usage",
        "/v1/usage/deprecated",
        "/v1/whoami",
        "/v1/openapi.json",
        "/v1/docs",
    ]
    assert list(V2["paths"]) == ["/v2/tenants/{tenant}/devices/{device}/telemetry"]
    assert openapi.versions(ROUTES) == ["v1", "v2"]


def test_a_route_belongs_to_the_version_it_says_or_its_path_or_the_default() -> None:
    def version(**changes: str) -> str:
        return openapi.version_of(msgspec.structs.replace(LIST, **changes), "v7")

    assert version(version="v3", path="/things") == "v3"
    assert version(path="/v2/things") == "v2"
    assert version(path="/v2") == "v2"
    assert version(path="/v2things") == "v7"
    assert version(path="/@connections/{id}") == "v7"


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for item in V1["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))
    assert names[:4] == ["create-device", "list", "data_list", "files"]


def test_an_operation_that_two_routes_have_is_named_after_the_second() -> None:
    again = msgspec.structs.replace(LIST, name="again", path="/v1/again/{tenant}")
    third = msgspec.structs.replace(LIST, name="third", path="/v1/third/{tenant}")
    names = [item["get"]["operationId"] for item in published(LIST, again, third)["paths"].values()]
    assert names == ["list", "device_list", "third"]
    fourth = msgspec.structs.replace(LIST, name="list", path="/v1/fourth/{tenant}")
    with pytest.raises(DocumentError, match="route list: no operationId is left"):
        published(LIST, again, fourth)


def test_of_routes_that_differ_in_headers_the_first_is_described() -> None:
    other = msgspec.structs.replace(CREATE, name="other", headers={"X-A": "1"}, scopes=[])
    assert published(CREATE, other)["paths"][DEVICES]["post"]["x-scopes"] == ["devices:write"]


def test_only_components_that_are_referred_to_are_kept_and_conflicts_are_renamed() -> None:
    schemas = V1["components"]["schemas"]
    assert {"Device", "NewDevice", "Status", "Problem", "device_Problem", "Value", "data_Value"} <= set(
        schemas
    )
    assert "Unused" not in schemas
    assert schemas["Value"] == {"type": "integer"}
    assert schemas["data_Value"]["type"] == "object"
    assert schemas["Device"]["properties"]["parent"] == {"$ref": "#/components/schemas/Device"}
    telemetry = V1["paths"]["/v1/tenants/{tenant}/devices/{device}/telemetry"]["get"]
    assert telemetry["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/data_Value"
    }
    assert set(V2["components"]["schemas"]) == {"Problem", "Value"}


def test_components_that_are_the_same_in_two_documents_are_kept_once() -> None:
    data = copy.deepcopy(DATA)
    data["components"]["schemas"]["Value"] = {"type": "integer"}
    both = Documents({"device": parse("device", DEVICE), "data": parse("data", data)})
    assert "data_Value" not in published(LIST, TELEMETRY, documents=both)["components"]["schemas"]


def test_what_is_text_and_not_schema_is_left_as_it_is() -> None:
    data = copy.deepcopy(DATA)
    data["components"]["schemas"]["Value"] = {
        "type": "object",
        "default": {"$ref": "#/components/schemas/Nowhere"},
        "properties": {"default": {"$ref": "#/components/schemas/Kind"}, "$ref": {"type": "string"}},
        "discriminator": {"propertyName": "k", "mapping": {"a": "#/components/schemas/Kind", "b": "else"}},
    }
    data["components"]["schemas"]["Kind"] = {"type": "string"}
    found = published(TELEMETRY, documents=Documents({"data": parse("data", data)}))["components"]["schemas"]
    assert found["Value"] == data["components"]["schemas"]["Value"]
    assert found["Kind"] == {"type": "string"}


def test_a_reference_that_leads_nowhere_is_an_error() -> None:
    data = copy.deepcopy(DATA)
    data["components"] = {}
    with pytest.raises(DocumentError, match="document data: there is no #/components/schemas/Value"):
        published(TELEMETRY, documents=Documents({"data": parse("data", data)}))


def test_callers_are_told_how_to_show_who_they_are_and_what_they_need() -> None:
    create = V1["paths"][DEVICES]["post"]
    names = ["people", "keys", "certificates", "partner"]
    assert create["security"] == [{name: ["devices:write"]} for name in names]
    schemes = V1["components"]["securitySchemes"]
    assert schemes["people"] == {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    assert schemes["keys"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert schemes["certificates"]["type"] == "mutualTLS"
    assert schemes["partner"] == {"type": "apiKey", "in": "header", "name": "X-Partner"}
    assert V1["paths"]["/v1/files/{rest}"]["put"]["security"] == []


def test_a_custom_authorizer_of_the_authorization_header_is_a_bearer() -> None:
    custom = msgspec.structs.replace(ROUTES.authorizers["partner"], header="authorization")
    routes = msgspec.structs.replace(ROUTES, authorizers={**ROUTES.authorizers, "partner": custom})
    found = openapi.published(routes, DOCUMENTS, "v1", server="/", title="t")
    assert found["components"]["securitySchemes"]["partner"] == {"type": "http", "scheme": "bearer"}


def test_what_the_gateway_answers_stands_with_what_the_upstream_does() -> None:
    create = V1["paths"][DEVICES]["post"]["responses"]
    assert list(create) == [
        "201",
        "400",
        "401",
        "403",
        "409",
        "413",
        "415",
        "429",
        "431",
        "502",
        "503",
        "504",
    ]
    assert create["400"]["description"] == "The device makes no sense."
    assert create["401"] == {"$ref": "#/components/responses/Problem401"}
    assert "Retry-After" in V1["components"]["responses"]["Problem429"]["headers"]
    listed = V1["paths"][DEVICES]["get"]["responses"]
    assert list(listed) == ["200", "304", "400", "401", "403", "429", "431", "502", "503", "504"]
    files = V1["paths"]["/v1/files/{rest}"]["put"]["responses"]
    assert list(files) == ["400", "413", "415", "431", "502", "503", "504", "default"]
    assert list(V1["paths"]["/v1/whoami"]["get"]["responses"]) == ["200", "401", "403", "429", "431"]


def test_parameters_are_those_of_the_path_here_and_what_the_upstream_takes_from_callers() -> None:
    names = [parameter["name"] for parameter in V1["paths"][DEVICES]["get"]["parameters"]]
    assert names == ["tenant", "limit", "every_s", "active", "status", "metric", "cursor", "If-Match"]
    short = msgspec.structs.replace(LIST, path="/v1/mine", upstream_path="/v1/tenants/acme/devices")
    found = published(short)["paths"]["/v1/mine"]["get"]
    assert "tenant" not in [parameter["name"] for parameter in found["parameters"]]


def test_calls_that_may_be_tried_again_take_an_idempotency_key() -> None:
    names = [parameter["name"] for parameter in V1["paths"][DEVICES]["post"]["parameters"]]
    assert names == ["tenant", "Idempotency-Key"]
    once = msgspec.structs.replace(CREATE, retries=msgspec.structs.replace(CREATE.retries, attempts_max=1))
    names = [parameter["name"] for parameter in published(once)["paths"][DEVICES]["post"]["parameters"]]
    assert names == ["tenant"]


def test_deprecated_routes_say_until_when_and_what_instead() -> None:
    telemetry = V1["paths"]["/v1/tenants/{tenant}/devices/{device}/telemetry"]["get"]
    assert telemetry["deprecated"] is True
    assert (telemetry["x-deprecated-since"], telemetry["x-sunset"]) == ("2026-01-31", "2027-01-31")
    assert telemetry["externalDocs"]["url"] == "https://example.com/new"
    plain = msgspec.structs.replace(TELEMETRY, deprecation=Deprecation(since="2026-01-31"))
    found = published(plain)["paths"]["/v1/tenants/{tenant}/devices/{device}/telemetry"]["get"]
    assert "x-sunset" not in found


def test_tags_are_the_upstreams_and_inner_extensions_stay_inside() -> None:
    assert [tag["name"] for tag in V1["tags"]] == ["data", "device", "files", "gateway"]
    assert V1["paths"][DEVICES]["post"]["tags"] == ["device"]
    assert "x-headworks-scope" not in V1["paths"][DEVICES]["post"]


def test_a_document_is_not_changed_by_what_is_made_of_it() -> None:
    before = copy.deepcopy(DEVICE)
    published(CREATE, LIST, FILES)
    assert before == DEVICE


def test_routes_without_an_operation_are_described_by_their_path() -> None:
    found = V1["paths"]["/v1/files/{rest}"]["put"]
    assert found["operationId"] == "files"
    assert found["parameters"] == [
        {"name": "rest", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
