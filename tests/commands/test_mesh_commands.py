"""`headworks mesh`: what it says and how it ends; what it prints, Envoy runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commands.mesh import app
from tests.support import mesh_documents as of
from tests.support.mesh_rig import validated

ROOT = Path(__file__).parents[2]
GOOD = [
    of.mesh(),
    of.node("front", 8080, backends=("cart.local",)),
    of.node("cart", 8081),
    of.service("cart.local", node="cart"),
    of.gateway("cart", 8088),
    of.gateway_route("cart", "all", "cart.local", {"prefix": "/"}),
]
SLOW = {"delay": {"duration": {"unit": "s", "value": 2}, "percent": 120}}
ACM: dict[str, Any] = {"tls": {"mode": "STRICT", "certificate": {"acm": {"certificateArn": "arn"}}}}


def run(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(app, list(words))
    return got.exit_code, got.stdout, got.stderr


def test_check_counts_what_is_good(tmp_path: Path) -> None:
    few = of.policy("few", "virtualNode/cart", retryBudget={})
    code, out, _ = run("check", str(of.written(tmp_path, *GOOD, few)))
    counted = "1 virtual services, 2 virtual nodes, 0 virtual routers, 0 routes"
    assert (code, out) == (0, f"shop: {counted}, 1 virtual gateways, 1 gateway routes, 1 policies\n")


@pytest.mark.parametrize(
    ("documents", "code", "said"),
    [
        (GOOD[1:], 1, "error: mesh.json mesh/shop: is not there; 5 resources are in it"),
        (
            [*GOOD, of.policy("slow", "virtualNode/cart", faults=SLOW)],
            1,
            "error: mesh.json mesh/shop/policy/slow spec.faults.delay.percent: Expected `float` <= 100.0",
        ),
        (
            [of.mesh(), of.node("a", 80, **ACM)],
            3,
            "unsupported: mesh.json mesh/shop/virtualNode/a spec.listeners[0]",
        ),
        (
            [of.mesh(), {**of.service("a"), "spec": {}}],
            0,
            "warning: mesh.json mesh/shop/virtualService/a spec.provider",
        ),
        (
            [
                of.mesh(),
                of.node("front", 80, backends=("a", "b")),
                of.node("x", 81, protocol="tcp"),
                of.service("a", node="x"),
                of.service("b", node="x"),
            ],
            3,
            "unsupported: mesh/shop/virtualNode/front spec.backends: b speaks TCP on port 81",
        ),
    ],
)
def test_check_ends_as_its_worst_problem_says(
    tmp_path: Path, documents: list[of.Document], code: int, said: str
) -> None:
    folder = str(of.written(tmp_path, *documents))
    got, out, _ = run("check", folder)
    assert (got, out.startswith(said)) == (code, True), out
    got, out, _ = run("check", folder, "--json")
    assert got == code
    problem = json.loads(out)["problems"][0]
    assert problem["severity"] == said.split(":", maxsplit=1)[0]


@pytest.mark.parametrize("name", ["front", "virtualNode/cart", "virtualGateway/cart"])
def test_export_prints_what_envoy_takes(tmp_path: Path, name: str) -> None:
    code, out, _ = run(
        "export", str(of.written(tmp_path, *GOOD)), "--node", name, "--app", "8080=127.0.0.1:9080"
    )
    assert code == 0
    made = tmp_path / "envoy.json"
    made.write_text(out)
    validated(made)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--node", "gone"], "there is no virtual node or gateway gone, but cart, cart, front"),
        (["--node", "cart"], "say which cart: virtualNode/cart or virtualGateway/cart"),
        (["--node", "front", "--mesh", "gone"], "there is no mesh gone, but shop"),
        (["--node", "front", "--app", "x"], "--app x does not end with =HOST:PORT"),
        (["--node", "front", "--app", "x=1.2.3.4:5"], "--app x does not begin with a port"),
        (["--node", "front", "--tcp", "a=1.2.3.4:99999"], "does not end with =HOST:PORT"),
        (["--node", "front", "--parameter", "x"], "--parameter x is not NAME=VALUE"),
    ],
)
def test_export_says_what_was_asked_for_wrongly(tmp_path: Path, words: list[str], said: str) -> None:
    code, _, error = run("export", str(of.written(tmp_path, *GOOD)), *words)
    assert code == 2
    assert said in error


def test_export_of_several_meshes_needs_a_name(tmp_path: Path) -> None:
    folder = of.written(tmp_path, *GOOD, {"meshName": "other", "spec": {}})
    code, _, error = run("export", str(folder), "--node", "front")
    assert code == 2
    assert "say which mesh: --mesh, of other, shop" in error
    assert run("export", str(folder), "--node", "front", "--mesh", "shop")[0] == 0


def test_export_refuses_what_is_wrong_or_not_supported(tmp_path: Path) -> None:
    code, out, error = run("export", str(of.written(tmp_path / "a", *GOOD[1:])), "--node", "front")
    assert (code, out) == (1, "")
    assert "is not there" in error
    code, out, error = run(
        "export", str(of.written(tmp_path / "b", of.mesh(), of.node("a", 80, **ACM))), "--node", "a"
    )
    assert (code, out) == (3, "")
    assert "AWS gives its certificates to App Mesh alone" in error


def test_endpoints_and_parameters_can_be_given(tmp_path: Path) -> None:
    template = {
        "Parameters": {"Port": {"Type": "Number"}},
        "Resources": {
            "Node": {
                "Type": "AWS::AppMesh::VirtualNode",
                "Properties": {
                    "MeshName": "shop",
                    "VirtualNodeName": "cart",
                    "Spec": {
                        "Listeners": [{"PortMapping": {"Port": {"Ref": "Port"}, "Protocol": "http"}}],
                        "ServiceDiscovery": {"AWSCloudMap": {"NamespaceName": "n", "ServiceName": "s"}},
                    },
                },
            }
        },
    }
    folder = of.written(tmp_path / "mesh", *[each for each in GOOD if each.get("virtualNodeName") != "cart"])
    (folder / "cart.template").write_text(json.dumps(template))
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text('{"cart": ["10.0.0.1", "[fd00::1]:81", "fd00::2", "10.0.0.3:82"]}')
    words = ["export", str(folder), "--node", "front", "--endpoints", str(endpoints)]
    assert run(*words)[0] == 1
    code, out, _ = run(*words, "--parameter", "Port=8085")
    assert code == 0
    (cluster,) = [
        each for each in json.loads(out)["static_resources"]["clusters"] if "egress" in each["name"]
    ]
    made: list[Any] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    found = [each["endpoint"]["address"]["socket_address"] for each in made]
    assert [(each["address"], each["port_value"]) for each in found] == [
        ("10.0.0.1", 8085),
        ("fd00::1", 81),
        ("fd00::2", 8085),
        ("10.0.0.3", 82),
    ]
    endpoints.write_text("[]")
    assert run(*words, "--parameter", "Port=8085")[0] == 2


def test_the_command_is_there_and_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commands.cli", "mesh", "check", str(tmp_path / "gone")]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert got.returncode == 1
    assert got.stderr.strip() == f"headworks: there is no {tmp_path / 'gone'}"


@pytest.mark.parametrize("node", ["front", "cart-v1", "cart-v2"])
def test_the_mesh_of_the_guide_is_good(tmp_path: Path, node: str) -> None:
    guide = (ROOT / "docs/guides/mesh.md").read_text()
    (template,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "mesh.yaml").write_text(template)
    assert run("check", str(tmp_path))[0] == 0
    code, out, _ = run("export", str(tmp_path), "--node", node)
    assert code == 0
    (tmp_path / "envoy.json").write_text(out)
    validated(tmp_path / "envoy.json")
