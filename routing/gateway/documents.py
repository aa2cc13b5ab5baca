"""The OpenAPI documents of the upstreams, and what one operation of them says.

A document is an OpenAPI 3.1 file in JSON. All that it refers to is in itself (`#/components/...`): nothing is
ever fetched. What is missing is an error with its name, for which a reload keeps the last good routes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.gateway.routes_file import Routes
from runtime.settings_file import SettingsError

DOCUMENT_BYTES_MAX: Final = 8 << 20
OPERATIONS_MAX: Final = 2_000
REFERENCES_MAX: Final = 16
"""How many references in a row are followed, so that a circle ends."""
METHODS: Final = ("get", "head", "post", "put", "patch", "delete")
COMPONENT: Final = re.compile(r"#/components/([A-Za-z]{1,32})/([A-Za-z0-9._-]{1,128})")

Node = dict[str, Any]
"""A JSON object of a document."""


class DocumentError(SettingsError):
    """A document cannot be used; the text names it and what is missing."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a document; `parameters` are its own and its path's, with references followed."""

    document: Document
    name: str
    method: str
    path: str
    content: Node
    parameters: tuple[Node, ...]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One document; `operations` are by operationId."""

    name: str
    content: Node
    operations: dict[str, Operation] = msgspec.field(default_factory=dict)

    def resolve(self, node: Node) -> Node:
        """Return what a reference leads to, or the node itself; raises `DocumentError`."""
        for _ in range(REFERENCES_MAX):
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self.component(reference)
        raise DocumentError(f"document {self.name}: a reference leads to itself")

    def component(self, reference: str) -> Node:
        """Return the component that a reference names; raises `DocumentError`."""
        found = COMPONENT.fullmatch(reference)
        if found is None:
            raise DocumentError(f"document {self.name}: {reference[:200]!r} is not #/components/KIND/NAME")
        node = self.content.get("components", {}).get(found[1], {}).get(found[2])
        if not isinstance(node, dict):
            raise DocumentError(f"document {self.name}: there is no {reference}")
        return node


class Documents:
    """All documents of a routes file."""

    def __init__(self, documents: dict[str, Document]) -> None:
        self._documents = documents

    def operation(self, reference: str) -> Operation:
        """Return the operation of `document#operationId`; raises `DocumentError`."""
        name, _, operation = reference.partition("#")
        if name not in self._documents:
            raise DocumentError(f"there is no document {name!r}")
        found = self._documents[name].operations.get(operation)
        if found is None:
            raise DocumentError(f"document {name}: there is no operation {operation!r}")
        return found


def load(routes: Routes, folder: Path) -> Documents:
    """Read all documents of the routes, whose files are relative to `folder`; raises `DocumentError`.

    Every operation that a route names is looked up, so that a missing one is found here.
    """
    documents = Documents({name: read(name, folder / file) for name, file in routes.documents.items()})
    for route in routes.routes:
        if routes.upstreams[route.upstream].kind != "internal" and route.operation:
            documents.operation(route.operation)
    return documents


def read(name: str, path: Path) -> Document:
    """Read one document; raises `DocumentError`."""
    try:
        with path.open("rb") as file:
            text = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise DocumentError(f"document {name}: cannot read {path}: {error.strerror}") from error
    if len(text) > DOCUMENT_BYTES_MAX:
        raise DocumentError(f"document {name}: {path} is larger than {DOCUMENT_BYTES_MAX} bytes")
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(f"document {name}: {path} is not a JSON object: {error}") from error
    return parse(name, content)


def parse(name: str, content: Node) -> Document:
    """Take a document apart into its operations; raises `DocumentError`."""
    if not str(content.get("openapi", "")).startswith("3.1."):
        raise DocumentError(f"document {name}: it is not OpenAPI 3.1")
    document = Document(name=name, content=content)
    paths = content.get("paths", {})
    if not isinstance(paths, dict) or not all(isinstance(item, dict) for item in paths.values()):
        raise DocumentError(f"document {name}: paths are not objects")
    for path, item in paths.items():
        for method in METHODS:
            if isinstance(item.get(method), dict):
                _add(document, path, method, item)
    return document


def _add(document: Document, path: str, method: str, item: Node) -> None:
    content = item[method]
    name = content.get("operationId")
    if not isinstance(name, str):
        raise DocumentError(f"document {document.name}: {method.upper()} {path} has no operationId")
    if name in document.operations:
        raise DocumentError(f"document {document.name}: operationId {name} is there twice")
    if len(document.operations) == OPERATIONS_MAX:
        raise DocumentError(f"document {document.name}: it has more than {OPERATIONS_MAX} operations")
    parameters: dict[tuple[str, str], Node] = {}
    for parameter in [*item.get("parameters", []), *content.get("parameters", [])]:
        found = document.resolve(parameter)
        if not isinstance(found.get("name"), str) or not isinstance(found.get("in"), str):
            raise DocumentError(f"document {document.name}: a parameter of {name} has no name or no place")
        parameters[found["in"], found["name"]] = found
    document.operations[name] = Operation(
        document=document,
        name=name,
        method=method,
        path=path,
        content=content,
        parameters=tuple(parameters.values()),
    )
