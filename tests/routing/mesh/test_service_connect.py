"""What ECS Service Connect can express is as its API takes it, and what it cannot is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from typer.testing import CliRunner

from commands.mesh import app
from routing.mesh.service_connect import Exported, NoNamespace, exported
from tests.support import mesh_documents as of

MODEL = botocore.session.get_session().get_service_model("ecs")
SECONDS = {"unit": "s", "value": 20}
SHOP = [
    of.mesh("ALLOW_ALL"),
    of.node("front", 8080, backends=("cart",)),
    of.node("cart-1", 8080, timeout={"http": {"perRequest": SECONDS, "idle": {"unit": "ms", "value": 1500}}}),
    of.node("cart-2", 8081),
    of.node("stock", 9000, protocol="tcp"),
    of.router("cart", 80),
    of.route("cart", "all", {"cart-1": 90, "cart-2": 10}),
    of.service("cart", router="cart"),
    of.service("stock", node="stock"),
]


def made(folder: Path, name: str, *more: of.Document) -> Exported:
    snapshot = of.snapshot(folder, *SHOP, *more)
    return exported(snapshot, snapshot.nodes[name], "shop.local")


def lost(found: Exported) -> dict[str, str]:
    return {f"{each.resource.removeprefix('mesh/shop/')} {each.field}": each.text for each in found.lost}


def taken(config: dict[str, Any]) -> None:
    """Assert that the API of ECS takes it."""
    create = MODEL.operation_model("CreateService").input_shape
    connect = {"serviceName": "x", "serviceConnectConfiguration": config["serviceConnectConfiguration"]}
    assert not ParamValidator().validate(connect, create).has_errors()
    register = MODEL.operation_model("RegisterTaskDefinition").input_shape
    container = {"name": "app", "portMappings": config["portMappings"]}
    task = {"family": "x", "containerDefinitions": [container]}
    assert not ParamValidator().validate(task, register).has_errors()


def test_a_service_has_its_names_ports_and_timeouts(tmp_path: Path) -> None:
    config = made(tmp_path, "cart-1").config
    taken(config)
    assert config == {
        "serviceConnectConfiguration": {
            "enabled": True,
            "namespace": "shop.local",
            "services": [
                {
                    "portName": "http-8080",
                    "discoveryName": "cart-1",
                    "clientAliases": [{"port": 80, "dnsName": "cart"}],
                    "timeout": {"idleTimeoutSeconds": 2, "perRequestTimeoutSeconds": 20},
                }
            ],
        },
        "portMappings": [
            {"name": "http-8080", "containerPort": 8080, "protocol": "tcp", "appProtocol": "http"}
        ],
    }


def test_tcp_has_no_protocol_of_the_application(tmp_path: Path) -> None:
    config = made(tmp_path, "stock").config
    taken(config)
    assert config["portMappings"] == [{"name": "tcp-9000", "containerPort": 9000, "protocol": "tcp"}]
    (service,) = config["serviceConnectConfiguration"]["services"]
    assert service["clientAliases"] == [{"port": 9000, "dnsName": "stock"}]


def test_weights_go_to_the_heaviest_and_are_named(tmp_path: Path) -> None:
    (service,) = made(tmp_path, "cart-2").config["serviceConnectConfiguration"]["services"]
    assert "clientAliases" not in service
    weights = "virtualRouter/cart/route/all spec.httpRoute.action.weightedTargets"
    for name in ("cart-1", "cart-2"):
        found = lost(made(tmp_path, name))
        assert found == {weights: "weights are not kept: all goes to cart-1, which has the most"}


def test_what_it_cannot_express_is_named_by_resource_and_field(tmp_path: Path) -> None:
    check = {"protocol": "http", "path": "/", "healthyThreshold": 2, "unhealthyThreshold": 2}
    check |= {"intervalMillis": 5000, "timeoutMillis": 2000}
    outliers = {
        "maxServerErrors": 5,
        "interval": SECONDS,
        "baseEjectionDuration": SECONDS,
        "maxEjectionPercent": 50,
    }
    pool = {"http": {"maxConnections": 10}}
    log = {"logging": {"accessLog": {"file": {"path": "/dev/stdout"}}}}
    more = [
        of.node(
            "pay-1",
            8082,
            backends=("stock",),
            more=log,
            healthCheck=check,
            outlierDetection=outliers,
            connectionPool=pool,
        ),
        of.router("pay", 80),
        of.route(
            "pay",
            "card",
            {"pay-1": 1},
            match={"prefix": "/card"},
            retryPolicy={"maxRetries": 1, "perRetryTimeout": SECONDS},
            timeout={"perRequest": SECONDS},
        ),
        of.service("pay", router="pay"),
        of.policy("few", "virtualNode/pay-1", retryBudget={}),
    ]
    found = made(tmp_path, "pay-1", *more)
    taken(found.config)
    route, node = "virtualRouter/pay/route/card spec.httpRoute", "virtualNode/pay-1 spec"
    assert set(lost(found)) == {
        f"{route}.match",
        f"{route}.retryPolicy",
        f"{route}.timeout",
        f"{node}.listeners[0].healthCheck",
        f"{node}.listeners[0].outlierDetection",
        f"{node}.listeners[0].connectionPool",
        f"{node}.backends",
        f"{node}.logging",
        "policy/few spec",
    }


def test_a_node_of_cloud_map_has_its_namespace_and_name(tmp_path: Path) -> None:
    found = {"awsCloudMap": {"namespaceName": "other.local", "serviceName": "one"}}
    node = of.node("one-v1", 8083, more={"serviceDiscovery": found})
    snapshot = of.snapshot(tmp_path, of.mesh(), node, of.node("two", 8084))
    config = exported(snapshot, snapshot.nodes["one-v1"], "").config["serviceConnectConfiguration"]
    assert (config["namespace"], config["services"][0]["discoveryName"]) == ("other.local", "one")
    with pytest.raises(NoNamespace):
        exported(snapshot, snapshot.nodes["two"], "")


def test_the_command_prints_it_and_ends_with_what_is_lost(tmp_path: Path) -> None:
    folder = of.written(tmp_path, *SHOP, of.gateway("edge", 8088))
    words = ["export", str(folder), "--format", "ecs-service-connect", "--namespace", "shop.local", "--node"]
    said = CliRunner().invoke(app, [*words, "stock"])
    assert (said.exit_code, json.loads(said.stdout)["portMappings"][0]["containerPort"]) == (0, 9000)
    said = CliRunner().invoke(app, [*words, "cart-1"])
    assert said.exit_code == 3
    assert (
        "unsupported: mesh/shop/virtualRouter/cart/route/all spec.httpRoute.action.weightedTargets"
        in said.stderr
    )
    assert CliRunner().invoke(app, [*words, "edge"]).exit_code == 3
    said = CliRunner().invoke(app, [*words[:4], "--node", "stock"])
    assert (said.exit_code, "give --namespace" in said.stderr) == (2, True)
