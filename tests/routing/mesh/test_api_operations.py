"""Paths to operations, held against the service model."""

from __future__ import annotations

import botocore.session
import pytest

from routing.mesh.api.errors import STATUSES, ApiError
from routing.mesh.api.operations import operation

MODEL = botocore.session.get_session().get_service_model("appmesh", api_version="2019-01-25")
TAGS = {"TagResource": "tag", "UntagResource": "untag", "ListTagsForResource": "tags"}


@pytest.mark.parametrize("name", MODEL.operation_names)
def test_every_operation_of_the_service_model_is_found(name: str) -> None:
    model = MODEL.operation_model(name)
    found = operation(model.http["method"], model.http["requestUri"].format_map(Names()))
    if name in TAGS:
        assert found.verb == TAGS[name]
        return
    assert found.collection is not None
    what = found.collection.plural if found.verb == "list" else found.collection.kind
    assert f"{found.verb}{what}".lower() == name.lower()
    uri_names = [
        key
        for key, shape in model.input_shape.members.items()
        if shape.serialization.get("location") == "uri"
    ]
    assert len(found.names) == len(uri_names)


class Names(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key


@pytest.mark.parametrize("error", MODEL.error_shapes, ids=lambda error: error.name)
def test_errors_have_the_statuses_of_the_service_model(error: botocore.model.StructureShape) -> None:
    if error.name != "TooManyRequestsException":  # never answered: nothing is throttled
        assert STATUSES[error.name] == error.metadata["error"]["httpStatusCode"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v20190125"),
        ("GET", "/v20181001/meshes"),
        ("POST", "/v20190125/meshes"),
        ("DELETE", "/v20190125/meshes"),
        ("GET", "/v20190125/meshes/shop/routes"),
        ("GET", "/v20190125/tag"),
        ("DELETE", "/v20190125/meshes/shop//virtualNodes"),
        ("DELETE", "/v20190125/meshes/shop/meshes"),
        ("DELETE", "/v20190125/meshes/shop/virtualRouter%2Froutes/route"),
    ],
)
def test_what_is_no_operation_is_refused(method: str, path: str) -> None:
    with pytest.raises(ApiError) as caught:
        operation(method, path)
    assert caught.value.code == "UnknownOperationException"


@pytest.mark.parametrize("name", ["", "a%2Fb", "%00", "a" * 256])
def test_a_name_that_no_arn_could_have_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        operation("GET", f"/v20190125/meshes/{name}/virtualNodes")
    assert caught.value.code == "BadRequestException"
