"""Whatever a file has, reading it says what is wrong and never fails itself; nor does what follows."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.mesh.compile.node import compiled
from routing.mesh.compile.proxy import Proxy
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from tests.support import mesh_documents as of

WORDS = [
    "Resources", "Type", "Properties", "Spec", "MeshName", "Condition", "Conditions", "Parameters",
    "Default", "Mappings", "AWS::AppMesh::Mesh", "AWS::AppMesh::VirtualNode", "AWS::AppMesh::Route",
    "AWS::CloudFormation::Stack", "Transform", "Ref", "Fn::GetAtt", "Fn::Sub", "Fn::Join", "Fn::Select",
    "Fn::Split", "Fn::If", "Fn::FindInMap", "Fn::Equals", "Fn::And", "Fn::Or", "Fn::Not", "A", "B",
    "A.MeshName", "${A}", "${A.MeshName}", "${!A}", "AWS::NoValue", "AWS::Region", "meshName", "spec",
    "virtualNode", "virtualNodeName", "routeName", "apiVersion", "appmesh.k8s.aws/v1beta2", "metadata",
    "listeners", "Listeners", "meshes", "tags", "status", "0", "<<",
]  # fmt: skip
words = st.sampled_from(WORDS)
leaves = words | st.none() | st.booleans() | st.integers(-1, 70_000) | st.floats(allow_nan=False)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=30,
)
of_kind = st.sampled_from(["AWS::AppMesh::Mesh", "AWS::AppMesh::VirtualNode", "AWS::AppMesh::Route"])
resources = st.fixed_dictionaries(
    {"Type": of_kind | values}, optional={"Properties": values, "Condition": words | values}
)
templates = st.fixed_dictionaries(
    {"Resources": st.dictionaries(words, resources, max_size=4)},
    optional={"Conditions": values, "Parameters": values, "Mappings": values, "Transform": values},
)
answers = st.dictionaries(
    st.sampled_from(["virtualNode", "mesh", "route", "spec", "meshName", "apiVersion", "metadata"]), values
)


def checked(text: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"it{suffix}"
        path.write_text(text)
        meshes = meshes_of(read(path, {}))
        assert all(str(problem) for problem in meshes.problems)
        for snapshot in meshes.snapshots.values():
            proxied = [*snapshot.nodes.values(), *snapshot.gateways.values()]
            for of_name in proxied:
                with contextlib.suppress(Uncompilable):
                    compiled(snapshot, of_name, Proxy())  # type: ignore[arg-type]  # a list of both


@settings(max_examples=300, deadline=None)
@given(values | templates | answers)
def test_whatever_json_has_is_read(value: Any) -> None:
    checked(json.dumps(value), ".json")


@settings(max_examples=100, deadline=None)
@given(templates | answers | st.dictionaries(st.integers() | words | st.booleans(), values))
def test_whatever_yaml_has_is_read(value: Any) -> None:
    checked(yaml.safe_dump(value), ".yaml")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="!&*[]{}:,-\n 'a\"|>%@`", max_size=40).map(str.encode))
def test_whatever_bytes_a_file_has_are_read(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.yaml"
        path.write_bytes(data)
        meshes_of(read(path, {}))


def good() -> list[of.Document]:
    targets = {"n": 1}
    long = {"unit": "s", "value": 1}
    outliers = {"maxServerErrors": 1, "interval": long, "baseEjectionDuration": long, "maxEjectionPercent": 1}
    tries = {"maxRetries": 1, "perRetryTimeout": long, "httpRetryEvents": ["server-error"]}
    header = {"name": "h", "match": {"range": {"start": 1, "end": 2}}}
    return [
        of.mesh(),
        of.node(
            "n",
            80,
            backends=("s",),
            outlierDetection=outliers,
            timeout={"http": {"perRequest": long, "idle": long}},
            connectionPool={"http": {"maxConnections": 1, "maxPendingRequests": 1}},
        ),
        of.route("r", "z", targets, match={"prefix": "/", "headers": [header]}, retryPolicy=tries),
        of.router("r"),
        of.route("r", "x", targets),
        of.service("s", router="r"),
        of.gateway("g", 81),
        of.gateway_route("g", "y", "s", {"prefix": "/"}),
    ]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_a_good_mesh_is_read(data: st.DataObject) -> None:
    documents: Any = good()
    at: Any = documents
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and data.draw(st.booleans()):
            at = at[key]
            continue
        if isinstance(at, dict) and data.draw(st.booleans()):
            del at[key]
        else:
            at[key] = data.draw(values | st.integers(-(2**65), 2**65))
        break
    checked(json.dumps(documents), ".json")
