"""A route that is kept in a folder: read where it stands, changed there, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routing.traffic import route as routes
from routing.traffic.folder import FolderKeeping
from routing.traffic.keeping import Missing, Unavailable
from routing.traffic.route import RouteName
from tests.support import mesh_documents as of
from tests.support.mesh_client import cart

NAME = RouteName("shop", "cart", "all")
ROUTE = of.route("cart", "all", {"v1": 100, "v2": 0})


def folder(place: Path) -> Path:
    of.written(place, *cart({"v1": 81, "v2": 82}, ROUTE))
    (place / "broken.yaml").write_text("{")
    return place


def names_in(place: Path) -> set[str]:
    """Return the files of a folder, without the one that has the tags."""
    return {each.name for each in place.iterdir() if not each.name.startswith(".headworks-shift-")}


async def test_weights_are_changed_in_the_document_and_seen(tmp_path: Path) -> None:
    keeping = FolderKeeping(folder(tmp_path), NAME)
    (tmp_path / "mesh.json").chmod(0o640)
    kept = await keeping.read()
    await keeping.write(routes.weighted(kept.spec, (75, 25)))
    await keeping.note({"a": "1"})
    await keeping.note({"b": "2"})
    again = await FolderKeeping(tmp_path, NAME).read()
    assert routes.weights(again.spec) == (75, 25)
    assert again.tags == {"a": "1", "b": "2"}
    wanted = cart({"v1": 81, "v2": 82}, of.route("cart", "all", {"v1": 75, "v2": 25}))
    assert json.loads((tmp_path / "mesh.json").read_text()) == wanted
    assert (tmp_path / "mesh.json").stat().st_mode & 0o777 == 0o640
    assert names_in(tmp_path) == {"mesh.json", "broken.yaml"}


async def test_one_file_is_a_place_too(tmp_path: Path) -> None:
    folder(tmp_path)
    assert routes.weights((await FolderKeeping(tmp_path / "mesh.json", NAME).read()).spec) == (100, 0)


async def test_a_route_that_moves_to_another_file_is_found_again(tmp_path: Path) -> None:
    keeping = FolderKeeping(folder(tmp_path), NAME)
    await keeping.read()
    (tmp_path / "mesh.json").rename(tmp_path / "zoo.json")
    assert routes.weights((await keeping.read()).spec) == (100, 0)


async def test_a_route_of_a_template_is_refused_by_name(tmp_path: Path) -> None:
    properties = {"MeshName": "shop", "VirtualRouterName": "cart", "RouteName": "all", "Spec": ROUTE["spec"]}
    template = {"Resources": {"All": {"Type": "AWS::AppMesh::Route", "Properties": properties}}}
    (tmp_path / "shop.template").write_text(json.dumps(template))
    with pytest.raises(Missing, match=r"shop\.template: mesh/shop/.* is in a CloudFormation template"):
        await FolderKeeping(tmp_path, NAME).read()
    with pytest.raises(Missing, match="has no mesh/shop/virtualRouter/cart/route/more"):
        await FolderKeeping(tmp_path, RouteName("shop", "cart", "more")).read()


async def test_what_cannot_be_read_now_may_be_later(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no"):
        await FolderKeeping(tmp_path / "gone", NAME).read()
    wrong = ROUTE | {"spec": {"httpRoute": {"action": {"weightedTargets": [{"weight": 1000}]}}}}
    (tmp_path / "a.json").write_text(json.dumps(wrong))
    with pytest.raises(Unavailable, match=r"a.json: mesh/shop/virtualRouter/cart/route/all: "):
        await FolderKeeping(tmp_path, NAME).read()
