"""The `AWS::AppMesh::*` resources of a CloudFormation template, and policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from routing.mesh.documents.intrinsics import APP_MESH, NAME_OF, TYPES, Template, Unresolved
from routing.mesh.documents.wire_names import as_in_the_api
from routing.mesh.model.policies import PREFIX
from routing.mesh.model.resources import Resource


class Draft(NamedTuple):
    """A resource by its logical id, with its members under the names of the API."""

    logical: str
    kind: type[Resource]
    members: dict[str, Any]


class Fault(NamedTuple):
    """A resource by its logical id, the field, and what is wrong with it."""

    logical: str
    field: str
    text: str


def is_template(document: Any) -> bool:
    """Return whether a document is a template of CloudFormation."""
    return isinstance(document, dict) and isinstance(document.get("Resources"), dict)


def drafts_of(document: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Draft | Fault]:
    """Yield the App Mesh resources of a template, and what could not be decided."""
    template = Template(document, given)
    for logical, resource in template.resources.items():
        if not isinstance(resource, dict):
            continue
        name = resource.get("Type", "")
        if not isinstance(name, str):
            yield Fault(logical, "Type", "is no text")
        elif name == "AWS::CloudFormation::Stack":
            text = "a nested stack is not read: give its template beside this one"
            yield Fault(logical, "Properties.TemplateURL", text)
        elif name.startswith((APP_MESH, PREFIX)):
            yield from _draft(template, logical, name, resource)


def _draft(template: Template, logical: str, name: str, resource: dict[str, Any]) -> Iterator[Draft | Fault]:
    if name not in TYPES:
        yield Fault(logical, "Type", f"there is no {name}")
        return
    try:
        if not template.included(resource):
            return
        properties = template.properties(resource)
        properties.setdefault(NAME_OF[name], logical)
    except Unresolved as error:
        yield Fault(logical, error.path or "Condition", str(error))
        return
    yield Draft(logical, TYPES[name], as_in_the_api(properties, TYPES[name]))
