"""Operations on a store, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from routing.mesh.api.dynamodb_store import DynamoDbStore
from routing.mesh.api.errors import ApiError
from routing.mesh.api.operations import operation
from routing.mesh.api.service import MeshApi
from routing.mesh.api.settings import Api
from routing.mesh.api.sqlite_store import SqliteStore
from routing.mesh.api.store import TOKENS_S, Store
from tests.support.dynamodb import dynamodb_server, made_table


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[str]:
    with dynamodb_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "dynamodb"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MeshApi]:
    store: Store
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "mesh.sqlite")
    else:
        url = request.getfixturevalue("dynamodb")
        store = DynamoDbStore(made_table(url), region="us-east-1", endpoint=url)
    yield MeshApi(store, Api(signing_keys_file="", routes_max=1))
    store.close()


def call(
    api: MeshApi, method: str, path: str, body: object = None, now_s: float = 1.0, **query: str
) -> dict[str, Any]:
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
    return api.call(operation(method, f"/v20190125/{path}"), query, encoded, now_s)


def refused(api: MeshApi, method: str, path: str, body: object = None, **query: str) -> tuple[str, str]:
    with pytest.raises(ApiError) as caught:
        call(api, method, path, body, 1.0, **query)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        ({}, "meshName"),
        ({"meshName": 1}, "meshName"),
        ({"meshName": "a/b"}, "meshName"),
        ({"meshName": "shop", "colour": "red"}, "colour"),
        ({"meshName": "shop", "spec": {"colour": "red"}}, "spec"),
        ({"meshName": "shop", "spec": {"egressFilter": {"type": "SOME"}}}, "spec.egressFilter.type"),
        ({"meshName": "shop", "tags": [{"key": "k"}]}, "tags[0]"),
        ({"meshName": "shop", "tags": [{"key": "aws:k", "value": ""}]}, "tags"),
        ({"meshName": "shop", "tags": [{"key": "k", "value": ""}] * 2}, "tags"),
        ({"meshName": "shop", "clientToken": ""}, "clientToken"),
        (b'{"meshName": "shop", "spec": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "spec"),
    ],
)
def test_a_body_that_cannot_be_is_refused_by_its_field_and_leaves_nothing(
    api: MeshApi, body: object, field: str
) -> None:
    code, text = refused(api, "PUT", "meshes", body)
    assert code == "BadRequestException"
    assert text.partition(": ")[0] in {field, "body"}
    assert call(api, "GET", "meshes") == {"meshes": []}


def test_a_body_of_any_depth_is_refused_as_such(api: MeshApi) -> None:
    deep = b'{"meshName": "shop", "spec": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001
    assert refused(api, "PUT", "meshes", deep)[0] == "BadRequestException"


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1e1"])
def test_a_limit_is_a_number_in_its_range(api: MeshApi, limit: str) -> None:
    assert refused(api, "GET", "meshes", limit=limit)[0] == "BadRequestException"


def test_a_version_counts_updates_and_not_tags(api: MeshApi) -> None:
    made = call(api, "PUT", "meshes", {"meshName": "shop"}, now_s=5.0)
    changed = call(api, "PUT", "meshes/shop", {"spec": {}}, now_s=7.0)
    arn = made["metadata"]["arn"]
    call(api, "PUT", "tag", {"tags": [{"key": "k", "value": "v"}]}, resourceArn=arn)
    assert changed == call(api, "GET", "meshes/shop")
    assert changed["metadata"] == made["metadata"] | {"version": 2, "lastUpdatedAt": 7.0}


def test_a_token_is_forgotten_after_a_day(api: MeshApi) -> None:
    call(api, "PUT", "meshes", {"meshName": "shop", "clientToken": "once"}, now_s=0.0)
    call(api, "PUT", "meshes", {"meshName": "two", "clientToken": "two"}, now_s=TOKENS_S + 1.0)
    three = {"meshName": "three", "clientToken": "once"}
    assert call(api, "PUT", "meshes", three, now_s=TOKENS_S + 2.0)["meshName"] == "three"


def test_a_router_has_as_many_routes_as_the_settings_say(api: MeshApi) -> None:
    call(api, "PUT", "meshes", {"meshName": "shop"})
    call(api, "PUT", "meshes/shop/virtualNodes", {"virtualNodeName": "node", "spec": {}})
    call(api, "PUT", "meshes/shop/virtualRouters", {"virtualRouterName": "router", "spec": {}})
    spec = {"tcpRoute": {"action": {"weightedTargets": [{"virtualNode": "node", "weight": 1}]}}}
    routes = "meshes/shop/virtualRouter/router/routes"
    call(api, "PUT", routes, {"routeName": "one", "spec": spec})
    assert refused(api, "PUT", routes, {"routeName": "two", "spec": spec})[0] == "LimitExceededException"
    assert refused(api, "DELETE", "meshes/shop/virtualRouters/router")[0] == "ResourceInUseException"
    assert refused(api, "DELETE", "meshes/shop/virtualNodes/node")[0] == "ResourceInUseException"


def test_an_arn_of_another_account_is_refused(api: MeshApi) -> None:
    arn = "arn:aws:appmesh:us-east-1:111111111111:mesh/shop"
    assert refused(api, "GET", "tags", resourceArn=arn)[0] == "BadRequestException"
    assert refused(api, "GET", "tags")[0] == "BadRequestException"
