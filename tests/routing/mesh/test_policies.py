"""Policies are read as resources are, lead somewhere, and are of what may have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled
from routing.mesh.compile.proxy import Proxy
from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from routing.mesh.model.policies import TARGETS, PolicySpec, RetryBudget
from tests.support import mesh_documents as of

SHOP = [
    of.mesh(),
    of.node("front", 8080, backends=("cart",)),
    of.node("cart-1", 8080),
    of.router("cart"),
    of.route("cart", "all", {"cart-1": 1}),
    of.service("cart", router="cart"),
]
BUDGET = {"percent": 25.0, "minRetries": 5}


def problems(folder: Path, *policies: of.Document) -> list[str]:
    found = meshes_of(read(of.written(folder, *SHOP, *policies), {})).problems
    return [str(problem).replace("error: mesh.json mesh/shop/policy/", "") for problem in found]


def test_a_policy_says_something_of_its_target(tmp_path: Path) -> None:
    mesh = of.snapshot(tmp_path, *SHOP, of.policy("few", "virtualNode/cart-1", retryBudget=BUDGET))
    assert mesh.policy("mesh/shop/virtualNode/cart-1").retry_budget == RetryBudget(percent=25, min_retries=5)
    assert mesh.policy("mesh/shop/virtualNode/front") == PolicySpec()


def test_a_template_has_policies_too(tmp_path: Path) -> None:
    properties = {
        "MeshName": "shop",
        "Spec": {"Target": {"Fn::Sub": "virtualNode/cart-${Version}"}, "RetryBudget": {"Percent": 25}},
    }
    template = {
        "Parameters": {"Version": {"Type": "String", "Default": "1"}},
        "Resources": {"Few": {"Type": "Headworks::Mesh::Policy", "Properties": properties}},
    }
    of.written(tmp_path, *SHOP)
    (tmp_path / "stack.template").write_text(json.dumps(template))
    meshes = meshes_of(read(tmp_path, {}))
    assert not meshes.problems
    assert meshes.snapshots["shop"].policy("mesh/shop/virtualNode/cart-1").retry_budget is not None


@pytest.mark.parametrize("target", ["virtualNode/", "virtualNode", "cart-1", "virtualService/cart", "/"])
def test_a_target_is_the_end_of_a_path(tmp_path: Path, target: str) -> None:
    (said,) = problems(tmp_path, of.policy("few", target, retryBudget=BUDGET))
    assert said.startswith("few spec.target: ")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("virtualNode/gone", "few spec.target: there is no mesh/shop/virtualNode/gone"),
        ("virtualRouter/cart/route/all", "few spec.retryBudget: is for virtualNode, not route"),
        ("", "few spec.retryBudget: is for virtualNode, not mesh"),
    ],
)
def test_what_a_policy_is_of_is_there_and_may_have_it(tmp_path: Path, target: str, said: str) -> None:
    assert problems(tmp_path, of.policy("few", target, retryBudget=BUDGET)) == [said]


def test_two_policies_do_not_say_the_same_of_one_target(tmp_path: Path) -> None:
    two = [of.policy(name, "virtualNode/cart-1", retryBudget=BUDGET) for name in ("one", "two")]
    text = "two spec.retryBudget: is set for mesh/shop/virtualNode/cart-1 by mesh/shop/policy/one too"
    assert problems(tmp_path, *two) == [text]


def test_every_member_says_what_may_have_it() -> None:
    assert set(TARGETS) | {"target"} == set(PolicySpec.__struct_fields__)


def test_the_budget_of_a_node_is_in_the_clusters_of_its_callers(tmp_path: Path) -> None:
    mesh = of.snapshot(tmp_path, *SHOP, of.policy("few", "virtualNode/cart-1", retryBudget=BUDGET))
    made = compiled(mesh, mesh.nodes["front"], Proxy())
    (cluster,) = (as_json(each) for each in made.clusters if "cart-1" in each.name)
    (threshold,) = cluster["circuit_breakers"]["thresholds"]
    budget: dict[str, Any] = {"budget_percent": {"value": 25.0}, "min_retry_concurrency": 5}
    assert threshold["retry_budget"] == budget
