"""A plan makes what is kept into what is wanted, and on its way no reference leads nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routing.mesh.documents.reading import read
from routing.mesh.documents.writing import file_of, written
from routing.mesh.meshes import meshes_of
from routing.mesh.model.resources import Mesh, VirtualNode
from routing.mesh.plan import Change, Difference, differences, planned, rank, specs_of
from tests.support import mesh_documents as of

KINDS = {
    "virtualNode": (),
    "virtualRouter": (),
    "virtualGateway": (),
    "virtualService": ("virtualNode", "virtualRouter"),
    "route": ("virtualNode", "virtualRouter"),
    "gatewayRoute": ("virtualGateway", "virtualService"),
    "policy": ("virtualNode", "route"),
}
"""What refers to what; a route to a router and a gateway route to a gateway by their path."""
PARENTS = {"route": "virtualRouter", "gatewayRoute": "virtualGateway"}


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """Return specs, whose `to` has the paths that they refer to."""
    found: dict[str, Any] = {"mesh/m": {"value": draw(st.integers(0, 2))}}
    for kind, targets in KINDS.items():
        for name in draw(st.sets(st.sampled_from("abc"))):
            parents = [path for path in found if path.split("/")[-2] == PARENTS.get(kind, "mesh")]
            if not parents:
                continue
            parent = draw(st.sampled_from(sorted(parents)))
            near = [path for path in found if path.split("/")[-2] in targets]
            to = draw(st.sets(st.sampled_from(sorted(near)), max_size=2)) if near else set()
            found[f"{parent}/{kind}/{name}"] = {"value": draw(st.integers(0, 2)), "to": sorted(to)}
    return found


def applied(store: dict[str, Any], change: Change) -> None:
    """Do a change as the API does: nothing may refer to what is not there."""
    if change.verb == "delete":
        users = [path for path, spec in store.items() if change.path in spec.get("to", ())]
        below = [path for path in store if path.startswith(f"{change.path}/")]
        assert not users, (change.path, users)
        assert not below, (change.path, below)
        del store[change.path]
        return
    assert (change.path in store) == (change.verb == "update")
    parent = change.path.rpartition("/")[0].rpartition("/")[0]
    assert not parent or parent in store
    for target in change.spec.get("to", ()):
        assert target in store, (change.path, target)
    store[change.path] = change.spec


@given(wanted=stores(), kept=stores())
def test_a_plan_ends_with_what_is_wanted(wanted: dict[str, Any], kept: dict[str, Any]) -> None:
    store = dict(kept)
    for change in planned(wanted, kept, prune=True):
        applied(store, change)
    assert store == wanted
    assert planned(wanted, store, prune=True) == []


@given(wanted=stores(), kept=stores())
def test_without_pruning_nothing_goes(wanted: dict[str, Any], kept: dict[str, Any]) -> None:
    store = dict(kept)
    for change in planned(wanted, kept, prune=False):
        applied(store, change)
    assert store == {**kept, **wanted}


def test_differences_are_as_deep_as_they_can_be_said() -> None:
    before = {"route": {"targets": [{"weight": 90}, {"weight": 10}], "gone": 1}}
    after = {"route": {"targets": [{"weight": 50}, {"weight": 10}, {"weight": 40}], "new": "x"}}
    found = list(differences(before, after))
    assert found == [
        Difference("spec.route.targets[0].weight", 90, 50),
        Difference("spec.route.targets[2]", None, {"weight": 40}),
        Difference("spec.route.gone", 1, None),
        Difference("spec.route.new", None, "x"),
    ]
    assert [str(each) for each in found][:2] == [
        "spec.route.targets[0].weight 90 -> 50",
        'spec.route.targets[2] nothing -> {"weight":40}',
    ]


def test_every_kind_has_a_rank() -> None:
    assert rank("mesh/m") == 0
    assert [rank(f"mesh/m/{kind}/x") for kind in KINDS] == [1, 1, 1, 2, 2, 3, 4]


@given(name=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60))
def test_any_name_is_a_file_that_is_read_again(tmp_path_factory: Any, name: str) -> None:
    folder = tmp_path_factory.mktemp("resources")
    spec = {"listeners": [{"portMapping": {"port": 80, "protocol": "http"}}]}
    (folder / "in.json").write_text(json.dumps([{"meshName": name, "virtualNodeName": name, "spec": spec}]))
    (resource,) = (each.resource for each in read(folder, {}).found)
    assert isinstance(resource, VirtualNode)
    out = folder / "out"
    path = written(resource, out)
    assert path == out / file_of(resource)
    assert ".." not in path.relative_to(folder).parts
    assert [each.resource for each in read(out, {}).found] == [resource]


def test_a_mesh_is_written_and_read_again(tmp_path: Path) -> None:
    documents = [
        of.mesh(),
        of.node("front", 8080, backends=("cart",)),
        of.node("cart-1", 8080),
        of.router("cart"),
        of.route("cart", "all", {"cart-1": 1}),
        of.service("cart", router="cart"),
        of.gateway("edge", 8088),
        of.gateway_route("edge", "all", "cart", {"prefix": "/"}),
        of.policy("few", "virtualNode/cart-1", retryBudget={}),
    ]
    before = meshes_of(read(of.written(tmp_path / "in", *documents), {}))
    files = {str(written(each, tmp_path / "out").relative_to(tmp_path / "out")) for each in before.resources}
    assert {"shop/mesh.json", "shop/virtualRouter/cart/route/all.json", "shop/policy/few.json"} <= files
    after = meshes_of(read(tmp_path / "out", {}))
    assert specs_of(after.resources) == specs_of(before.resources)
    assert any(isinstance(each, Mesh) for each in after.resources)
