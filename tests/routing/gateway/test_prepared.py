from __future__ import annotations

import pytest

from routing.gateway.prepared import Prepared
from routing.gateway.routes_file import Discovery, Retries, Route, Routes, Upstream

UPSTREAMS = {
    "servers": Upstream(discovery=Discovery(kind="static")),
    "events": Upstream(kind="kinesis", stream="events", region="eu-central-1"),
}


def prepared(**fields: object) -> Prepared:
    values = {"name": "r", "method": "POST", "path": "/v1/{device}", "upstream": "servers", "public": True}
    route = Route(**{**values, **fields})  # type: ignore[arg-type]
    return Prepared(route, Routes(upstreams=UPSTREAMS, routes=[route]))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_an_idempotent_method_may_be_repeated(method: str) -> None:
    assert prepared().is_repeatable(method, {})


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_others_may_with_a_key_that_the_upstream_knows_again(method: str) -> None:
    key = {"Idempotency-Key": "1"}
    assert not prepared().is_repeatable(method, {})
    assert prepared().is_repeatable(method, key)
    assert not prepared(retries=Retries(keyed=False)).is_repeatable(method, key)


@pytest.mark.parametrize(
    ("by", "key"),
    [("", ""), ("tenant", "acme"), ("caller", "portal"), ("header:X-Site", "north"), ("device", "pump-7")],
)
def test_a_server_is_chosen_by_what_the_route_says(by: str, key: str) -> None:
    found = prepared(hash_by=by).hash_key({"X-Site": "north"}, "acme", "portal", {"device": "pump-7"})
    assert found == key


def test_records_of_a_device_stay_in_order_and_so_do_those_of_a_caller() -> None:
    each = prepared(upstream="events")
    assert each.hash_key({}, "acme", "portal", {"device": "pump-7"}) == "acme/pump-7"
    assert each.hash_key({}, "acme", "portal", {}) == "acme/portal"
    assert prepared(upstream="events", hash_by="tenant").hash_key({}, "acme", "portal", {}) == "acme"
