"""Weights are changed where they stand, and nothing else of a document is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from routing.mesh.documents.editing import NotEditable, at, renumbered, route_in
from routing.mesh.documents.text import documents_in

NAMES = {"meshName": "shop", "virtualRouterName": "cart", "routeName": "all"}
TARGETS = ("spec", "httpRoute", "action", "weightedTargets")
YAML = """\
# all of the shop
---
meshName: shop
spec: {}
---
- {meshName: shop, virtualRouterName: cart, routeName: other, spec: {}}
- route:
    meshName: shop   # which mesh
    virtualRouterName: cart
    routeName: 'all'
    spec:
      httpRoute:
        match: {prefix: /}
        action:
          weightedTargets:
            - {virtualNode: v1, weight: 100}
            - virtualNode: v2     # the canary
              weight: 0           # for now
"""


def changed(text: str, suffix: str, *weights: int) -> str:
    path = route_in(documents_in(text.encode(), suffix), NAMES)
    assert path is not None
    changes = {(*path, *TARGETS, place, "weight"): weight for place, weight in enumerate(weights)}
    return renumbered(text.encode(), suffix, changes).decode()


def test_a_yaml_document_keeps_its_comments() -> None:
    wanted = YAML.replace("weight: 100", "weight: 5").replace("weight: 0 ", "weight: 95 ")
    assert changed(YAML, ".yaml", 5, 95) == wanted


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_document_keeps_its_layout(indent: int | None) -> None:
    targets = [{"virtualNode": "é", "weight": 1}, {"weight": 0, "virtualNode": "v2"}]
    action = {"weightedTargets": targets}
    document: dict[str, Any] = NAMES | {"spec": {"httpRoute": {"match": {"prefix": "/"}, "action": action}}}
    made = changed(json.dumps([document], indent=indent, ensure_ascii=False), ".json", 30, 70)
    targets[0]["weight"], targets[1]["weight"] = 30, 70
    assert made == json.dumps([document], indent=indent, ensure_ascii=False)


def test_a_weight_that_stands_for_others_too_is_left_alone() -> None:
    document = YAML.replace("weight: 100", "weight: &one 100").replace("weight: 0 ", "weight: *one ")
    with pytest.raises(NotEditable, match="do not stand in it as plain numbers"):
        changed(document, ".yaml", 5, 95)


def test_json_that_is_no_yaml_is_left_alone() -> None:
    text = json.dumps(NAMES | {"spec": {"httpRoute": {"action": {"weightedTargets": [{"weight": 1}]}}}})
    with pytest.raises(NotEditable, match="cannot be changed in place"):
        changed(text.replace(": ", ":\t").replace("{", "{\n\t"), ".json", 5)


def test_templates_are_left_aside() -> None:
    template = {"Resources": {"Route": {"Type": "AWS::AppMesh::Route", "Properties": NAMES | {"spec": {}}}}}
    assert route_in([template, [NAMES]], NAMES) is None
    assert route_in([template, [NAMES | {"spec": {}}]], NAMES) == (1, 0)
    assert at([template, [NAMES]], (1, 0)) == NAMES
