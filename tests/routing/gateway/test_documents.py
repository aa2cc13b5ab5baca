from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from routing.gateway import documents
from routing.gateway.documents import DocumentError
from runtime.settings_file import SettingsError
from tests.support.api_documents import DATA, DEVICE, ROUTES


def test_documents_are_read_beside_the_routes_file(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_bytes(msgspec.json.encode(DEVICE))
    (tmp_path / "data.json").write_bytes(msgspec.json.encode(DATA))
    found = documents.load(ROUTES, tmp_path).operation("device#create-device")
    assert (found.method, found.path) == ("post", "/v1/tenants/{tenant}/devices")
    assert [parameter["name"] for parameter in found.parameters] == ["tenant"]


def test_a_missing_operation_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_bytes(msgspec.json.encode({**DEVICE, "paths": {}}))
    (tmp_path / "data.json").write_bytes(msgspec.json.encode(DATA))
    with pytest.raises(SettingsError, match="document device: there is no operation 'create-device'"):
        documents.load(ROUTES, tmp_path)


def test_a_missing_document_is_an_error_with_its_name() -> None:
    with pytest.raises(DocumentError, match="there is no document 'nope'"):
        documents.Documents({}).operation("nope#list")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"openapi": "3.0.3"}', "it is not OpenAPI 3.1"),
        (b'{"openapi": "3.1.0", "paths": []}', "paths are not objects"),
        (b'{"openapi": "3.1.0", "paths": {"/a": {"get": {}}}}', "GET /a has no operationId"),
        (b" " * (documents.DOCUMENT_BYTES_MAX + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_document_is_an_error(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DocumentError, match=said):
        documents.read("a", tmp_path / "a.json")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"document a: cannot read .*: No such file"):
        documents.read("a", tmp_path / "a.json")


def _parsed(operation: dict[str, Any], components: dict[str, Any] | None = None) -> documents.Document:
    paths = {"/a": {"get": {"operationId": "a", **operation}}}
    return documents.parse("d", {"openapi": "3.1.0", "paths": paths, "components": components or {}})


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({"$ref": "#/components/parameters/A"}, "a reference leads to itself"),
        ({"$ref": "#/components/parameters/Gone"}, "there is no #/components/parameters/Gone"),
        ({"$ref": "other.json#/x"}, "is not #/components/KIND/NAME"),
        ({"in": "query"}, "a parameter of a has no name"),
    ],
)
def test_parameters_that_lead_nowhere_are_errors(parameter: dict[str, Any], said: str) -> None:
    circle = {"parameters": {"A": {"$ref": "#/components/parameters/A"}}}
    with pytest.raises(DocumentError, match=said):
        _parsed({"parameters": [parameter]}, circle)


def test_an_operation_id_that_is_there_twice_is_an_error() -> None:
    content = copy.deepcopy(DATA)
    content["paths"]["/other"] = content["paths"]["/v1/tenants/{tenant}/devices/{device}/telemetry"]
    with pytest.raises(DocumentError, match="operationId list is there twice"):
        documents.parse("d", content)


def test_a_document_has_a_limit_of_operations() -> None:
    paths = {
        f"/{number}": {"get": {"operationId": f"o{number}"}} for number in range(documents.OPERATIONS_MAX + 1)
    }
    with pytest.raises(DocumentError, match="more than 2000 operations"):
        documents.parse("d", {"openapi": "3.1.0", "paths": paths})


def test_parameters_of_an_operation_come_before_those_of_its_path() -> None:
    content = copy.deepcopy(DEVICE)
    own = {"name": "tenant", "in": "path", "required": True, "schema": {"const": "acme"}}
    content["paths"]["/v1/tenants/{tenant}/devices"]["post"]["parameters"] = [own]
    found = documents.parse("d", content).operations["create-device"]
    assert found.parameters == (own,)
