"""What is compiled of policies, that Envoy takes it, and that what cannot be meant is named by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled, static
from routing.mesh.compile.proxy import Proxy
from routing.mesh.compile.splitting import STEPS, steps
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from routing.mesh.snapshot import MeshSnapshot
from tests.support import mesh_documents as of
from tests.support.mesh_rig import exported, validated

CHECK = {
    "healthyThreshold": 2, "intervalMillis": 5000, "timeoutMillis": 2000, "unhealthyThreshold": 3,
    "protocol": "http", "path": "/up",
}  # fmt: skip
NODE = "virtualNode/cart-1"
ROUTE = "virtualRouter/cart/route/all"
GATEWAY = "virtualGateway/edge"
GATEWAY_ROUTE = f"{GATEWAY}/gatewayRoute/in"
SHOP = [
    of.mesh(),
    of.node("front", 8080, backends=("cart",)),
    of.node("cart-1", 8081, healthCheck=CHECK),
    of.node("cart-2", 8082),
    of.node("stock", 5432, protocol="tcp"),
    of.router("cart"),
    of.route("cart", "all", {"cart-1": 2, "cart-2": 1}),
    of.router("stock", 5432, "tcp"),
    of.route("stock", "all", {"stock": 1}, kind="tcpRoute"),
    of.service("cart", router="cart"),
    of.gateway("edge", 80),
    of.gateway_route("edge", "in", "cart", {"prefix": "/"}),
]
MINUTE = {"unit": "s", "value": 60}
FAULTS = {
    "delay": {"duration": {"unit": "ms", "value": 200}, "percent": 12.5},
    "abort": {"status": 503, "percent": 0.0001},
}
KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE = ECAlgorithm.to_jwk(KEY, as_dict=True)
PUBLIC = ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
OF_WHOM: of.Document = {"issuer": "https://issuer.example", "audiences": ["cart", "shop"]}
JWT: of.Document = {**OF_WHOM, "jwks": {"inline": json.dumps({"keys": [PUBLIC]})}, "forward": True}
JWT["claimHeaders"] = [{"claim": "sub", "header": "x-subject"}]
REMOTE = {"uri": "https://issuer.example/keys", "certificateChain": "/etc/hostname"}
LIMIT = {"requests": 100, "per": MINUTE, "burst": 20}
SHARED = {"requests": 100, "per": MINUTE, "onFailure": "DENY", "key": {"header": "x-tenant"}}
SERVICE: of.Document = {"host": "limits.local", "port": 18001, "timeout": {"unit": "ms", "value": 50}}
EVERYWHERE: dict[str, dict[str, of.Document]] = {
    NODE: {
        "faults": FAULTS,
        "localRateLimit": LIMIT,
        "retryBudget": {},
        "jwt": JWT,
        "globalRateLimit": SHARED,
    },
    ROUTE: {
        "faults": FAULTS,
        "localRateLimit": LIMIT,
        "mirror": {"virtualNode": "cart-2", "percent": 1.5},
        "sticky": {"header": "x-device-id"},
        "jwt": JWT,
        "globalRateLimit": {**SHARED, "onFailure": "ALLOW", "key": {"remoteAddress": {}}},
    },
    GATEWAY: {"localRateLimit": LIMIT, "jwt": JWT, "globalRateLimit": SHARED},
    GATEWAY_ROUTE: {
        "localRateLimit": LIMIT,
        "jwt": {**JWT, "allowMissing": True},
        "globalRateLimit": {**SHARED, "onFailure": "ALLOW", "key": {"constant": "all"}},
    },
    "": {"rateLimitService": SERVICE},
}
"""Every member, at every kind of target that may have it."""


def policies(of_target: dict[str, dict[str, of.Document]]) -> list[of.Document]:
    return [
        of.policy(f"p{index}", target, **members) for index, (target, members) in enumerate(of_target.items())
    ]


def managers(snapshot: MeshSnapshot, name: str) -> dict[str, Any]:
    """Return the connection managers of a proxy by the name of their routes."""
    of_name = snapshot.nodes.get(name) or snapshot.gateways[name]
    made: Any = as_json(static(compiled(snapshot, of_name, Proxy()), Proxy()))
    filters = [
        one["typed_config"]
        for listener in made["static_resources"]["listeners"]
        for chain in listener["filter_chains"]
        for one in chain["filters"]
    ]
    return {one["route_config"]["name"]: one for one in filters if "route_config" in one}


def names(manager: Any) -> list[str]:
    return [each["name"].removeprefix("envoy.filters.http.") for each in manager["http_filters"]]


def problems(folder: Path, target: str, **members: of.Document) -> list[str]:
    given = of.written(folder, *SHOP, of.policy("p", target, **members))
    found = meshes_of(read(given, {})).problems
    return [str(problem).replace("error: mesh.json mesh/shop/policy/p ", "") for problem in found]


@pytest.mark.parametrize("name", ["front", "cart-1", "edge"])
def test_envoy_takes_all_policies_everywhere(tmp_path: Path, name: str) -> None:
    snapshot = of.snapshot(tmp_path, *SHOP, *policies(EVERYWHERE))
    validated(exported(tmp_path, snapshot, name, Proxy()))


@pytest.mark.parametrize(
    ("target", "member"), [(to, each) for to, has in EVERYWHERE.items() for each in has if to]
)
def test_envoy_takes_each_policy_alone(tmp_path: Path, target: str, member: str) -> None:
    only = {target: {member: EVERYWHERE[target][member]}, "": EVERYWHERE[""]}
    snapshot = of.snapshot(tmp_path, *SHOP, *policies(only))
    validated(exported(tmp_path, snapshot, {NODE: "cart-1", ROUTE: "front"}.get(target, "edge"), Proxy()))


def test_filters_are_only_where_a_policy_needs_them(tmp_path: Path) -> None:
    made = managers(of.snapshot(tmp_path, *SHOP), "edge") | managers(of.snapshot(tmp_path, *SHOP), "cart-1")
    assert {name: names(manager) for name, manager in made.items()} == {name: ["router"] for name in made}
    snapshot = of.snapshot(tmp_path, *SHOP, *policies({ROUTE: {"faults": FAULTS}}))
    made = managers(snapshot, "edge")
    assert names(made["rds_ingress_shop_edge_80"]) == ["router"]
    assert names(made["rds_services_80"]) == ["fault", "router"]
    assert names(managers(snapshot, "front")["rds_egress_shop_front"]) == ["fault", "router"]


def test_filters_have_an_order(tmp_path: Path) -> None:
    snapshot = of.snapshot(tmp_path, *SHOP, *policies(EVERYWHERE))
    inbound = managers(snapshot, "cart-1")["cds_ingress_shop_cart-1_http_8081"]
    assert names(inbound) == [
        "jwt_authn",
        "local_ratelimit",
        "headworks.global_limit_or_deny",
        "fault",
        "router",
    ]
    outer = managers(snapshot, "edge")["rds_ingress_shop_edge_80"]
    assert names(outer)[2:] == ["headworks.global_limit_or_allow", "headworks.global_limit_or_deny", "router"]


def test_health_checks_are_not_policed(tmp_path: Path) -> None:
    snapshot = of.snapshot(tmp_path, *SHOP, *policies({NODE: {"localRateLimit": LIMIT}}))
    manager = managers(snapshot, "cart-1")["cds_ingress_shop_cart-1_http_8081"]
    checked, everything = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert checked["match"]["path"] == "/up"
    assert "typed_per_filter_config" not in checked
    assert list(everything["typed_per_filter_config"]) == ["envoy.filters.http.local_ratelimit"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"target": NODE, "faults": {}},
            "spec.faults: at least one of delay, abort must be set, not none",
        ),
        (
            {"target": NODE, "faults": {"delay": {"duration": {"value": 0}, "percent": 1}}},
            "spec.faults.delay: duration must be more than 0 and at most an hour",
        ),
        (
            {"target": NODE, "faults": {"abort": {"status": 503, "percent": 101}}},
            "spec.faults.abort.percent: Expected `float` <= 100.0",
        ),
        (
            {"target": NODE, "faults": {"abort": {"status": 200, "percent": 10}}},
            "spec.faults.abort.status: Expected `int` >= 400",
        ),
        (
            {"target": NODE, "localRateLimit": {"requests": 0, "per": MINUTE}},
            "spec.localRateLimit.requests: Expected `int` >= 1",
        ),
        (
            {"target": NODE, "localRateLimit": {"requests": 1, "per": {"unit": "ms", "value": 49}}},
            "spec.localRateLimit: per must be 50 ms at least and a day at most",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {}}},
            "spec.jwt.jwks: exactly one of file, inline, remote must be set, not none",
        ),
        (
            {"target": GATEWAY, "jwt": {**JWT, "audiences": []}},
            "spec.jwt.audiences: Expected `array` of length >= 1",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {"inline": json.dumps({"keys": [PRIVATE]})}}},
            "spec.jwt.jwks: inline has a secret, in key 0: give the public part alone",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {"inline": "keys"}}},
            "spec.jwt.jwks: inline is no JSON Web Key Set: JSON is malformed: invalid character (byte 0)",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {"remote": {**REMOTE, "uri": "http://a/k"}}}},
            "spec.jwt.jwks.remote: uri must be https://HOST/PATH or https://HOST:PORT/PATH",
        ),
        (
            {
                "target": GATEWAY,
                "jwt": {**OF_WHOM, "jwks": {"remote": {**REMOTE, "cacheDuration": {"value": 0}}}},
            },
            "spec.jwt.jwks.remote: cacheDuration must be a second at least and a day at most",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {"remote": {**REMOTE, "uri": "https://[::1"}}}},
            "spec.jwt.jwks.remote: uri must be https://HOST/PATH or https://HOST:PORT/PATH",
        ),
        (
            {"target": GATEWAY, "jwt": {**OF_WHOM, "jwks": {"remote": {**REMOTE, "uri": "https://a:99999"}}}},
            "spec.jwt.jwks.remote: Port out of range 0-65535",
        ),
        (
            {"target": ROUTE, "sticky": {"header": "x y"}},
            'spec.sticky.header: Expected `str` matching regex "^[!#$%&\'*+.^_`|~0-9A-Za-z-]{1,50}$"',
        ),
        (
            {"target": NODE, "globalRateLimit": SHARED},
            "spec.globalRateLimit: needs rateLimitService in a policy of the mesh, which says who counts",
        ),
        (
            {"target": NODE, "globalRateLimit": {**SHARED, "onFailure": "MAYBE"}},
            "spec.globalRateLimit.onFailure: Invalid enum value 'MAYBE'",
        ),
        (
            {"target": NODE, "globalRateLimit": {"requests": 1, "per": MINUTE}},
            "spec.globalRateLimit: Object missing required field `onFailure`",
        ),
        (
            {"target": NODE, "globalRateLimit": {**SHARED, "key": {}}},
            "spec.globalRateLimit.key: exactly one of header, remoteAddress, constant must be set, not none",
        ),
        (
            {"target": NODE, "rateLimitService": SERVICE},
            "spec.rateLimitService: is for mesh, not virtualNode",
        ),
        (
            {"target": "", "rateLimitService": {**SERVICE, "timeout": {"value": 0}}},
            "spec.rateLimitService: timeout must be more than 0 and at most 10 s",
        ),
        (
            {"target": "", "rateLimitService": {**SERVICE, "clientPolicy": {}}},
            "spec.rateLimitService.clientPolicy.tls: is needed",
        ),
        (
            {
                "target": "",
                "rateLimitService": {
                    **SERVICE,
                    "clientPolicy": {
                        "tls": {"validation": {"trust": {"acm": {"certificateAuthorityArns": ["arn"]}}}}
                    },
                },
            },
            "spec.rateLimitService.clientPolicy.tls.validation.trust.acm: is not supported: name a file",
        ),
        (
            {"target": GATEWAY, "faults": FAULTS},
            "spec.faults: is for route and virtualNode, not virtualGateway",
        ),
        (
            {"target": ROUTE, "mirror": {"virtualNode": "gone"}},
            "spec.mirror.virtualNode: there is no mesh/shop/virtualNode/gone",
        ),
        (
            {"target": ROUTE, "mirror": {"virtualNode": "cart-1", "port": 1}},
            "spec.mirror.virtualNode: mesh/shop/virtualNode/cart-1 does not listen on port 1, but on 8081",
        ),
        (
            {"target": "virtualNode/stock", "localRateLimit": LIMIT},
            "spec.localRateLimit: is of requests, and port 5432 of mesh/shop/virtualNode/stock speaks TCP",
        ),
        (
            {"target": "virtualRouter/stock/route/all", "sticky": {"header": "x"}},
            "spec.sticky: is of requests, and mesh/shop/virtualRouter/stock/route/all has connections only",
        ),
    ],
)
def test_what_is_wrong_with_a_policy_is_named_by_its_field(
    tmp_path: Path, members: dict[str, Any], said: str
) -> None:
    assert problems(tmp_path, **members) == [said]


def test_sticky_weights_of_the_same_shares_are_the_same() -> None:
    assert steps([1, 1]) == steps([50, 50]) == [500_000, 500_000]
    assert steps([90, 10]) == steps([9, 1]) == [900_000, 100_000]
    assert steps([0, 3]) == [0, STEPS]
    assert sum(steps([1, 1, 1])) == STEPS


@pytest.mark.parametrize(("host", "sni"), [("issuer.example", "issuer.example"), ("127.0.0.1", None)])
def test_keys_are_fetched_from_who_has_a_certificate_of_that_name(
    tmp_path: Path, host: str, sni: str | None
) -> None:
    remote = {"uri": f"https://{host}:8443/keys?a=b", "certificateChain": str(authority(tmp_path))}
    documents = policies({GATEWAY: {"jwt": {**OF_WHOM, "jwks": {"remote": remote}}}})
    snapshot = of.snapshot(tmp_path / "mesh", *SHOP, *documents)
    validated(exported(tmp_path, snapshot, "edge", Proxy()))
    made: Any = as_json(static(compiled(snapshot, snapshot.gateways["edge"], Proxy()), Proxy()))
    (cluster,) = (each for each in made["static_resources"]["clusters"] if each["name"].startswith("jwks_"))
    context = cluster["transport_socket"]["typed_config"]
    assert context.get("sni") == sni
    (name,) = context["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert name["matcher"] == {"exact": host}


def authority(folder: Path) -> Path:
    path = folder / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_a_token_is_asked_for_by_a_check_of_health_with_a_path_of_its_own_alone(tmp_path: Path) -> None:
    documents = [each for each in SHOP if each.get("virtualNodeName") != "cart-1"]
    checked = of.node("cart-1", 8081, healthCheck={**CHECK, "path": "/"})
    given = of.written(tmp_path, *documents, checked, of.policy("p", NODE, jwt=JWT))
    (problem,) = meshes_of(read(given, {})).problems
    assert (problem.field, "give the check a path of its own" in problem.text) == ("spec.jwt", True)


def test_the_service_that_counts_is_called_with_tls_where_its_policy_says_so(tmp_path: Path) -> None:
    trust = {"validation": {"trust": {"file": {"certificateChain": str(authority(tmp_path))}}}}
    service = {**SERVICE, "clientPolicy": {"tls": trust}}
    given = {NODE: {"globalRateLimit": SHARED}, "": {"rateLimitService": service}}
    snapshot = of.snapshot(tmp_path / "mesh", *SHOP, *policies(given))
    validated(exported(tmp_path, snapshot, "cart-1", Proxy()))
    made: Any = as_json(static(compiled(snapshot, snapshot.nodes["cart-1"], Proxy()), Proxy()))
    (cluster,) = (each for each in made["static_resources"]["clusters"] if each["name"] == "rate_limits")
    assert cluster["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"] == ["h2"]
    secret = {"validation": {"trust": {"sds": {"secretName": "spiffe://shop"}}}}
    given[""] = {"rateLimitService": {**SERVICE, "clientPolicy": {"tls": secret}}}
    snapshot = of.snapshot(tmp_path / "mesh", *SHOP, *policies(given))
    with pytest.raises(Uncompilable, match="give its socket"):
        compiled(snapshot, snapshot.nodes["cart-1"], Proxy())
    validated(exported(tmp_path, snapshot, "cart-1", Proxy(sds_socket="/run/sds.sock")))


def test_a_key_set_of_any_depth_is_refused(tmp_path: Path) -> None:
    deep = '{"keys": [{"a": ' + "[" * 30_000 + "]" * 30_000 + "}]}"
    (said,) = problems(tmp_path, GATEWAY, jwt={**OF_WHOM, "jwks": {"inline": deep}})
    assert said.startswith("spec.jwt.jwks: inline is no JSON Web Key Set: ")


def test_envoy_takes_the_least_and_the_most_of_everything(tmp_path: Path) -> None:
    least: of.Document = {"requests": 1, "per": {"unit": "ms", "value": 50}}
    most: of.Document = {"requests": 1_000_000_000, "per": {"unit": "s", "value": 86_400}}
    second = {"unit": "ms", "value": 1}
    faults = {"delay": {"duration": second, "percent": 0.0001}, "abort": {"status": 599, "percent": 100}}
    longest = {"delay": {"duration": {"unit": "s", "value": 3600}, "percent": 100}}
    given: dict[str, dict[str, of.Document]] = {
        NODE: {"localRateLimit": least, "faults": faults},
        ROUTE: {"localRateLimit": most, "faults": longest, "sticky": {"header": "!#$%&'*+.^_`|~"}},
        GATEWAY: {"globalRateLimit": {**least, "onFailure": "DENY"}},
        GATEWAY_ROUTE: {"globalRateLimit": {**most, "onFailure": "DENY", "key": {"constant": "\u00e9\n"}}},
        "": {"rateLimitService": {"host": "::1", "port": 65_535, "timeout": {"unit": "ms", "value": 1}}},
    }
    snapshot = of.snapshot(tmp_path, *SHOP, *policies(given))
    for name in ("front", "cart-1", "edge"):
        validated(exported(tmp_path, snapshot, name, Proxy()))
