"""Folders and App Mesh APIs made equal by the command, ours and moto's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from commands.mesh import app
from tests.support import mesh_documents as of
from tests.support.mesh_api import SECRET, MeshApiProcess, mesh_api

pytestmark = [pytest.mark.end_to_end]
SHOP = [
    of.mesh(),
    of.node("front", 8080, backends=("cart",)),
    of.node("cart-1", 8080),
    of.node("cart-2", 8081),
    of.router("cart"),
    of.route("cart", "all", {"cart-1": 90, "cart-2": 10}),
    of.service("cart", router="cart"),
]
REST = [
    of.gateway("edge", 8088),
    of.gateway_route("edge", "all", "cart", {"prefix": "/"}),
    of.policy("few", "virtualNode/cart-1", retryBudget={"percent": 30}),
]


@pytest.fixture(autouse=True)
def credentials() -> Iterator[None]:
    given = {"AWS_ACCESS_KEY_ID": "AKADMIN", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    given["AWS_DEFAULT_REGION"] = "us-east-1"
    with mock.patch.dict(os.environ, given):
        yield


@pytest.fixture
def api(tmp_path: Path) -> Iterator[MeshApiProcess]:
    with mesh_api(tmp_path) as found:
        yield found


def run(*words: str | Path, **more: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], **more)


def test_an_api_has_what_a_folder_has_and_again_nothing_is_done(tmp_path: Path, api: MeshApiProcess) -> None:
    folder = of.written(tmp_path / "shop", *SHOP, *REST)
    assert run("diff", folder, api.url).exit_code == 1
    said = run("apply", folder, api.url)
    assert (said.exit_code, said.stdout.count("\n+ mesh/") + 1) == (0, len(SHOP) + len(REST)), said.output
    again = run("diff", folder, api.url)
    assert (again.exit_code, again.stdout) == (0, "no difference\n")
    assert run("apply", folder, api.url, "--prune").stdout == "no difference\n"
    client = api.client()
    spec = client.describe_route(meshName="shop", virtualRouterName="cart", routeName="all")["route"]["spec"]
    assert spec["httpRoute"]["action"]["weightedTargets"][0] == {"virtualNode": "cart-1", "weight": 90}


def test_a_change_is_shown_by_its_field_and_done(tmp_path: Path, api: MeshApiProcess) -> None:
    folder = of.written(tmp_path / "shop", *SHOP)
    assert run("apply", folder, api.url).exit_code == 0
    changed = [each for each in SHOP if "routeName" not in each]
    of.written(folder, *changed, of.route("cart", "all", {"cart-1": 50, "cart-2": 50}))
    said = run("diff", folder, api.url)
    assert said.exit_code == 1
    assert said.stdout.splitlines() == [
        "~ mesh/shop/virtualRouter/cart/route/all",
        "    spec.httpRoute.action.weightedTargets[0].weight 90 -> 50",
        "    spec.httpRoute.action.weightedTargets[1].weight 10 -> 50",
        "1 to update",
    ]
    (change,) = json.loads(run("apply", folder, api.url, "--json").stdout)
    assert (change["verb"], change["differences"][0]["after"]) == ("update", 50)
    assert run("diff", folder, api.url).exit_code == 0


def test_what_the_folder_does_not_have_goes_when_that_is_asked_for(
    tmp_path: Path, api: MeshApiProcess
) -> None:
    folder = of.written(tmp_path / "shop", *SHOP, *REST)
    assert run("apply", folder, api.url).exit_code == 0
    of.written(folder, of.mesh(), of.node("front", 8080), of.node("cart-1", 8080))
    assert run("apply", folder, api.url).exit_code == 0  # nothing goes by itself
    asked = run("apply", folder, api.url, "--prune")
    assert (asked.exit_code, "7 resources would go: give --yes" in asked.stderr) == (2, True)
    assert run("apply", folder, api.url, "--prune", "--yes").exit_code == 0
    assert run("diff", folder, api.url).exit_code == 0
    assert len(api.client().list_virtual_nodes(meshName="shop")["virtualNodes"]) == 2


def test_a_failure_says_what_was_done_and_can_be_run_again(tmp_path: Path) -> None:
    with mesh_api(tmp_path, "in_mesh_max = 2") as api:
        folder = of.written(tmp_path / "shop", *SHOP)
        said = run("apply", folder, api.url)
        assert said.exit_code == 1
        assert "+ mesh/shop/virtualNode/front: LimitExceededException: there are at most 2" in said.stderr
        assert "3 changes are done, 4 are left: run it again" in said.stderr
        of.written(folder, *[each for each in SHOP if each.get("virtualNodeName") != "front"])
        assert run("apply", folder, api.url).exit_code == 0


def test_two_hundred_resources(tmp_path: Path, api: MeshApiProcess) -> None:
    nodes = [of.node(f"n{number}", 8080, backends=("cart",)) for number in range(200)]
    folder = of.written(tmp_path / "shop", *SHOP, *nodes)
    assert run("apply", folder, api.url).exit_code == 0
    assert run("diff", folder, api.url).exit_code == 0


def test_an_api_becomes_a_folder(tmp_path: Path, api: MeshApiProcess) -> None:
    folder = of.written(tmp_path / "shop", *SHOP, *REST)
    assert run("apply", folder, api.url).exit_code == 0
    out = tmp_path / "out"
    said = run("import", api.url, out)
    assert said.exit_code == 0, said.output
    assert "1 gatewayRoute, 1 mesh, 1 policy, 1 route" in said.stdout
    assert run("diff", out, folder).exit_code == 0
    assert run("import", api.url, out).exit_code == 2  # which is not empty


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "InvalidSignatureException"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentials"),
    ],
)
def test_calls_are_signed(tmp_path: Path, api: MeshApiProcess, change: dict[str, str], why: str) -> None:
    folder = of.written(tmp_path / "shop", *SHOP)
    with mock.patch.dict(os.environ, change | {"AWS_EC2_METADATA_DISABLED": "true"}):
        said = run("diff", folder, api.url)
    assert (said.exit_code, why in said.stderr) == (1, True), said.output


def test_nobody_there_is_said(tmp_path: Path) -> None:
    folder = of.written(tmp_path / "shop", *SHOP)
    said = run("diff", folder, "http://127.0.0.1:1")
    assert (said.exit_code, "Unreachable: http://127.0.0.1:1" in said.stderr) == (1, True)
    assert run("apply", folder, "shop.example").exit_code == 2
    assert run("diff", tmp_path / "none", folder).exit_code == 2


def test_moto_is_an_app_mesh_too(tmp_path: Path) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        kept = [of.mesh(), of.node("cart-1", 8080), of.router("cart"), of.route("cart", "all", {"cart-1": 1})]
        folder = of.written(tmp_path / "shop", *kept)
        assert run("apply", folder, url).exit_code == 0
        assert run("import", url, tmp_path / "out").exit_code == 0
        said = run("diff", tmp_path / "out", folder)
        assert [line for line in said.stdout.splitlines() if line.startswith(" ")] == [
            "    spec.serviceDiscovery nothing -> {}",  # which moto adds
            "    spec.backends [] -> nothing",
        ]
    finally:
        server.stop()
