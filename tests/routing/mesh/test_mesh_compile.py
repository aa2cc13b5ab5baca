"""What is compiled of a mesh, and that Envoy takes it: every field that a resource can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from routing.mesh.compile import matches, routes
from routing.mesh.compile.clusters import UNLIMITED
from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled, static
from routing.mesh.compile.proxy import Address, Endpoint, Proxy
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import read
from routing.mesh.model.listening import HttpTimeout
from routing.mesh.model.routes import HttpRouteMatch
from routing.mesh.model.shape import Duration
from routing.mesh.snapshot import MeshSnapshot
from tests.support import mesh_documents as of
from tests.support.mesh_rig import exported, validated

CHECK = {"healthyThreshold": 2, "intervalMillis": 5000, "timeoutMillis": 2000, "unhealthyThreshold": 3}
POOLS: dict[str, Any] = {
    "http": {"maxConnections": 7, "maxPendingRequests": 5},
    "http2": {"maxRequests": 9},
    "grpc": {"maxRequests": 11},
    "tcp": {"maxConnections": 13},
}
SECOND = {"unit": "s", "value": 1}
OUTLIERS = {
    "maxServerErrors": 4,
    "interval": SECOND,
    "baseEjectionDuration": SECOND,
    "maxEjectionPercent": 25,
}


def config(snapshot: MeshSnapshot, name: str, proxy: Proxy | None = None) -> dict[str, Any]:
    proxy = proxy or Proxy()
    of_name = snapshot.nodes.get(name) or snapshot.gateways[name]
    made: dict[str, Any] = as_json(static(compiled(snapshot, of_name, proxy), proxy))
    return made["static_resources"]  # type: ignore[no-any-return]


def clusters(snapshot: MeshSnapshot, name: str, proxy: Proxy | None = None) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in config(snapshot, name, proxy)["clusters"]}


def everything(folder: Path) -> MeshSnapshot:
    """Return a mesh in which every field of every resource is set somewhere."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("a.shop.local")
    issued.cert_chain_pems[0].write_to_path(folder / "a.pem")
    issued.private_key_pem.write_to_path(folder / "a.key")
    file = {"file": {"certificateChain": str(folder / "a.pem"), "privateKey": str(folder / "a.key")}}
    names = {"match": {"exact": ["a.shop.local", "spiffe://shop/a"]}}
    trust = {
        "trust": {"file": {"certificateChain": str(folder / "ca.pem")}},
        "subjectAlternativeNames": names,
    }
    sds = {"sds": {"secretName": "spiffe://shop/a"}}
    secret_trust = {"trust": {"sds": {"secretName": "spiffe://shop"}}}
    client = {"clientPolicy": {"tls": {"certificate": file, "validation": trust, "ports": [8080, 8082]}}}
    idle = {"idle": SECOND}
    timed = {"perRequest": {"unit": "ms", "value": 1500}, **idle}
    timeouts = {"http": timed, "http2": timed, "grpc": timed, "tcp": idle}
    protocols = ("http", "http2", "grpc", "tcp")
    listeners = [
        {
            "portMapping": {"port": 8080 + index, "protocol": protocol},
            "connectionPool": {protocol: POOLS[protocol]},
            "healthCheck": {**CHECK, "protocol": protocol, "path": "/up", "port": 9000},
            "outlierDetection": OUTLIERS,
            "timeout": {protocol: timeouts[protocol]},
            "tls": {
                "mode": ("STRICT", "PERMISSIVE", "STRICT", "DISABLED")[index],
                "certificate": sds if index == 2 else file,
                "validation": secret_trust if index == 2 else trust,
            },
        }
        for index, protocol in enumerate(protocols)
    ]
    text = {"accessLog": {"file": {"path": "/dev/stdout", "format": {"text": "%PROTOCOL%"}}}}
    discovery = {
        "dns": {"hostname": "shop.local", "responseType": "ENDPOINTS", "ipPreference": "IPv6_PREFERRED"}
    }
    retried = {
        "maxRetries": 2,
        "perRetryTimeout": SECOND,
        "httpRetryEvents": ["server-error", "gateway-error", "client-error", "stream-error"],
        "tcpRetryEvents": ["connection-error"],
    }
    of_grpc = {**retried, "grpcRetryEvents": ["cancelled", "unavailable"]}
    header = {"name": "x-a", "match": {"regex": "a.*"}}
    query = {"name": "q", "match": {"exact": "1"}}
    target = {"s": 1}
    routed: list[of.Document] = [
        of.route("r", "http", target, match={
            "path": {"regex": "/a/[0-9]+"}, "method": "GET", "scheme": "http", "headers": [header],
            "queryParameters": [query], "port": 8080,
        }, retryPolicy=retried, timeout=timed, priority=0),
        of.route("r", "http2", target, kind="http2Route", match={"prefix": "/"}, timeout={"idle": SECOND}),
        of.route("r", "grpc", target, kind="grpcRoute", match={
            "serviceName": "a.B", "methodName": "C", "metadata": [header], "port": 8082,
        }, retryPolicy=of_grpc, timeout=timed),
        of.route("r", "tcp", {"s": 1, "cloud": 2}, kind="tcpRoute", match={"port": 8083}, timeout=idle),
    ]  # fmt: skip
    backend = {"virtualService": {"virtualServiceName": "routed.local", **client}}
    backends = {"backends": [backend, {"virtualService": {"virtualServiceName": "s.local"}}]}
    node = {"backendDefaults": client, "logging": text, "serviceDiscovery": discovery}
    cloud = {"namespaceName": "shop", "serviceName": "cloud", "attributes": [{"key": "k", "value": "v"}]}
    edges: list[of.Document] = [
        {
            "portMapping": {"port": 8000 + index, "protocol": protocol},
            "connectionPool": {protocol: POOLS[protocol]},
            "tls": {
                "mode": ("STRICT", "PERMISSIVE", "STRICT")[index],
                "certificate": file,
                "validation": trust,
            },
        }
        for index, protocol in enumerate(protocols[:3])
    ]
    documents: list[of.Document] = [
        {
            "meshName": of.MESH,
            "spec": {
                "egressFilter": {"type": "ALLOW_ALL"},
                "serviceDiscovery": {"ipPreference": "IPv4_ONLY"},
            },
        },
        {"meshName": of.MESH, "virtualNodeName": "s", "spec": {**node, "listeners": listeners}},
        {
            "meshName": of.MESH,
            "virtualNodeName": "caller",
            "spec": {**node, **backends, "listeners": listeners[:1]},
        },
        {
            "meshName": of.MESH,
            "virtualNodeName": "cloud",
            "spec": {"listeners": listeners, "serviceDiscovery": {"awsCloudMap": cloud}},
        },
        {
            "meshName": of.MESH,
            "virtualRouterName": "r",
            "spec": {"listeners": [{"portMapping": each["portMapping"]} for each in listeners]},
        },
        of.service("routed.local", router="r"),
        of.service("s.local", node="s"),
        *routed,
        of.gateway("edge", 1, listeners=edges, backendDefaults=client, logging=text),
    ]
    for kind in ("httpRoute", "http2Route"):
        match = {
            "prefix": "/a",
            "method": "GET",
            "headers": [header],
            "queryParameters": [query],
            "port": 8000,
        }
        made = of.gateway_route("edge", kind, "routed.local", match, kind=kind, priority=5)
        made["spec"][kind]["action"]["target"]["port"] = 8080
        documents.append(made)
    called = of.gateway_route("edge", "g", "routed.local", {"metadata": [header]}, kind="grpcRoute")
    called["spec"]["grpcRoute"]["action"]["target"]["port"] = 8082
    return of.snapshot(folder, *documents, called)


@pytest.mark.parametrize("name", ["s", "caller", "cloud", "edge"])
@pytest.mark.parametrize("redirected", [True, False])
def test_envoy_takes_a_mesh_in_which_every_field_is_set(tmp_path: Path, name: str, redirected: bool) -> None:
    given = Proxy(
        sds_socket=str(tmp_path / "sds.sock"),
        endpoints={"cloud": (Endpoint("10.0.0.1"), Endpoint("10.0.0.2", 81))},
        applications={}
        if redirected
        else {8080 + each: Address("127.0.0.1", 9000 + each) for each in range(4)},
        tcp_backends={"routed.local": Address("127.0.0.1", 9999)},
    )
    validated(exported(tmp_path, everything(tmp_path), name, given))


def test_two_services_of_tcp_on_one_port_need_a_listener_each(tmp_path: Path) -> None:
    snapshot = of.snapshot(
        tmp_path,
        of.mesh(),
        of.node("front", 80, backends=("a", "b")),
        of.node("x", 5432, protocol="tcp"),
        of.service("a", node="x"),
        of.service("b", node="x"),
    )
    with pytest.raises(Uncompilable) as caught:
        config(snapshot, "front")
    assert caught.value.problems[0].field == "spec.backends"
    assert "b speaks TCP on port 5432, as does a" in caught.value.problems[0].text
    proxy = Proxy(tcp_backends={"b": Address("127.0.0.1", 5433)})
    names = [each["name"] for each in config(snapshot, "front", proxy)["listeners"]]
    assert names == ["lds_ingress_0.0.0.0_15000", "lds_egress_127.0.0.1_15001", "lds_egress_127.0.0.1_5433"]
    validated(exported(tmp_path, snapshot, "front", proxy))


def test_cloud_map_needs_endpoints_that_are_given(tmp_path: Path) -> None:
    discovery = {"serviceDiscovery": {"awsCloudMap": {"namespaceName": "n", "serviceName": "s"}}}
    snapshot = of.snapshot(
        tmp_path,
        of.mesh(),
        of.node("front", 80, backends=("a",)),
        of.node("x", 81, more=discovery),
        of.service("a", node="x"),
    )
    with pytest.raises(Uncompilable, match="give the endpoints of this node"):
        config(snapshot, "front")
    made = clusters(
        snapshot, "front", Proxy(endpoints={"x": (Endpoint("10.0.0.1"), Endpoint("10.0.0.2", 8))})
    )
    (locality,) = made["cds_egress_shop_x_http_81"]["load_assignment"]["endpoints"]
    found = [each["endpoint"]["address"]["socket_address"] for each in locality["lb_endpoints"]]
    assert found == [{"address": "10.0.0.1", "port_value": 81}, {"address": "10.0.0.2", "port_value": 8}]


def test_secrets_of_a_discovery_service_need_its_socket(tmp_path: Path) -> None:
    tls = {"mode": "STRICT", "certificate": {"sds": {"secretName": "s"}}}
    snapshot = of.snapshot(tmp_path, of.mesh(), of.node("x", 80, tls=tls))
    with pytest.raises(Uncompilable, match="give its socket"):
        config(snapshot, "x")
    assert "sds" in clusters(snapshot, "x", Proxy(sds_socket="/run/agent.sock"))


def test_what_is_not_supported_is_not_compiled(tmp_path: Path) -> None:
    snapshot = MeshSnapshot(everything_with_acm(tmp_path))
    with pytest.raises(Uncompilable, match="AWS gives its certificates"):
        config(snapshot, "x")


def everything_with_acm(folder: Path) -> Any:
    tls = {"mode": "STRICT", "certificate": {"acm": {"certificateArn": "arn"}}}
    found = read(of.written(folder, of.mesh(), of.node("x", 80, tls=tls)), {}).found
    return [each.resource for each in found]


@pytest.mark.parametrize(
    ("discovery", "mesh", "kind", "family"),
    [
        ({}, None, "LOGICAL_DNS", "V4_PREFERRED"),
        ({"responseType": "LOADBALANCER"}, "IPv4_ONLY", "LOGICAL_DNS", "V4_ONLY"),
        ({"responseType": "ENDPOINTS", "ipPreference": "IPv6_ONLY"}, "IPv4_ONLY", "STRICT_DNS", "V6_ONLY"),
        ({"ipPreference": "IPv6_PREFERRED"}, None, "LOGICAL_DNS", None),
    ],
)
def test_dns_is_asked_as_the_node_says(
    tmp_path: Path, discovery: dict[str, str], mesh: str | None, kind: str, family: str | None
) -> None:
    of_mesh = of.mesh()
    if mesh is not None:
        of_mesh["spec"]["serviceDiscovery"] = {"ipPreference": mesh}
    snapshot = of.snapshot(
        tmp_path,
        of_mesh,
        of.node("front", 80, backends=("a",)),
        of.node("x", 81, more={"serviceDiscovery": {"dns": {"hostname": "h", **discovery}}}),
        of.service("a", node="x"),
    )
    made = clusters(snapshot, "front")["cds_egress_shop_x_http_81"]
    assert made["type"] == kind
    assert made.get("dns_lookup_family") == family  # AUTO is Envoy's default, which is not written


@pytest.mark.parametrize("protocol", POOLS)
def test_a_pool_limits_the_application_and_nothing_else(tmp_path: Path, protocol: str) -> None:
    snapshot = of.snapshot(
        tmp_path,
        of.mesh(),
        of.node("front", 80, backends=("a",)),
        of.node("x", 81, protocol=protocol, connectionPool={protocol: POOLS[protocol]}),
        of.service("a", node="x"),
    )
    expected = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), UNLIMITED
    )
    (towards,) = clusters(snapshot, "front")[f"cds_egress_shop_x_{protocol}_81"]["circuit_breakers"][
        "thresholds"
    ]
    assert towards == expected
    names = {
        "maxConnections": "max_connections",
        "maxPendingRequests": "max_pending_requests",
        "maxRequests": "max_requests",
    }
    expected |= {names[name]: value for name, value in POOLS[protocol].items()}
    (local,) = clusters(snapshot, "x")[f"cds_ingress_shop_x_{protocol}_81"]["circuit_breakers"]["thresholds"]
    assert local == expected


def test_a_policy_is_of_the_ports_that_it_names_and_of_who_offers_tls_if_it_is_not_enforced(
    tmp_path: Path,
) -> None:
    trust = {"validation": {"trust": {"file": {"certificateChain": "/ca.pem"}}}}
    offered = {"mode": "PERMISSIVE", "certificate": {"file": {"certificateChain": "/c", "privateKey": "/k"}}}

    def encrypted(policy: dict[str, Any], tls: dict[str, Any] | None) -> bool:
        more = {"backendDefaults": {"clientPolicy": {"tls": {**trust, **policy}}}}
        listener: dict[str, Any] = {} if tls is None else {"tls": tls}
        snapshot = of.snapshot(
            tmp_path,
            of.mesh(),
            of.node("front", 80, backends=("a",), more=more),
            of.node("x", 81, **listener),
            of.service("a", node="x"),
        )
        return "transport_socket" in clusters(snapshot, "front")["cds_egress_shop_x_http_81"]

    assert encrypted({}, None)
    assert encrypted({"ports": [81]}, None)
    assert not encrypted({"ports": [82]}, offered)
    assert encrypted({"enforce": False}, offered)
    assert not encrypted({"enforce": False}, None)
    assert not encrypted({"enforce": False}, {**offered, "mode": "DISABLED"})


def test_the_policy_of_a_backend_has_a_cluster_of_its_own(tmp_path: Path) -> None:
    trust = {"tls": {"validation": {"trust": {"file": {"certificateChain": "/ca.pem"}}}}}
    backends = [
        {"virtualService": {"virtualServiceName": "a", "clientPolicy": trust}},
        {"virtualService": {"virtualServiceName": "b"}},
    ]
    snapshot = of.snapshot(
        tmp_path,
        of.mesh(),
        of.node("front", 80, more={"backends": backends}),
        of.node("x", 81),
        of.service("a", node="x"),
        of.service("b", node="x"),
    )
    made = clusters(snapshot, "front")
    assert "transport_socket" in made["cds_egress_shop_x_http_81_a"]
    assert "transport_socket" not in made["cds_egress_shop_x_http_81"]


def test_routes_are_ordered_by_priority_and_then_by_how_specific_they_are() -> None:
    given: list[tuple[str, int | None, dict[str, Any]]] = [
        ("more", None, {"prefix": "/a", "method": "GET"}),
        ("all", None, {"prefix": "/"}),
        ("same", None, {"prefix": "/a"}),
        ("also", None, {"prefix": "/a"}),
        ("long", None, {"prefix": "/a/b"}),
        ("regex", None, {"path": {"regex": ".*"}}),
        ("exact", None, {"path": {"exact": "/a"}}),
        ("early", 999, {"prefix": "/"}),
        ("first", 0, {"prefix": "/"}),
        ("last", 1000, {"prefix": "/"}),
    ]
    keyed = [
        (matches.order(priority, matches.http(msgspec.convert(match, HttpRouteMatch)), name), name)
        for name, priority, match in given
    ]
    ordered = [name for _, name in sorted(keyed)]
    assert ordered == ["first", "early", "exact", "regex", "long", "more", "also", "same", "all", "last"]


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (None, {"timeout": 15}),
        (HttpTimeout(), {"timeout": 15}),
        (HttpTimeout(per_request=Duration(unit="s", value=60)), {"timeout": 60}),
        (HttpTimeout(per_request=Duration(unit="s", value=0)), {"timeout": 0, "idle_timeout": 0}),
        (HttpTimeout(per_request=Duration(unit="s", value=900)), {"timeout": 900, "idle_timeout": 0}),
        (
            HttpTimeout(per_request=Duration(unit="s", value=900), idle=Duration(unit="ms", value=2000)),
            {"timeout": 900, "idle_timeout": 2},
        ),
    ],
)
def test_a_request_takes_15_s_unless_something_else_is_said(
    timeout: HttpTimeout | None, expected: dict[str, int]
) -> None:
    assert {name: value["seconds"] for name, value in routes.times(timeout).items()} == expected


@pytest.mark.parametrize("size", [2**33, 2**64, 2**70])
@pytest.mark.parametrize("path", ["maxRetries", "perRetryTimeout"])
def test_a_number_that_envoy_has_no_room_for_is_named(tmp_path: Path, size: int, path: str) -> None:
    tries: dict[str, Any] = {"maxRetries": 1, "perRetryTimeout": SECOND}
    tries[path] = size if path == "maxRetries" else {"unit": "s", "value": size * 2**32}
    snapshot = of.snapshot(
        tmp_path,
        of.mesh(),
        of.node("front", 80, backends=("a",)),
        of.node("x", 81),
        of.router("r"),
        of.route("r", "all", {"x": 1}, retryPolicy=tries),
        of.service("a", router="r"),
    )
    with pytest.raises(Uncompilable, match="what Envoy cannot take"):
        config(snapshot, "front")
