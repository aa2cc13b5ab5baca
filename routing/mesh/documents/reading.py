"""Files with App Mesh resources and policies: whatever is there is read, and what is not understood is named.

A file is a CloudFormation template, the output of `aws appmesh describe-*`, or the input of
`aws appmesh create-*` (`--cli-input-json`); JSON or YAML, one of them or a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.mesh.documents import cloudformation
from routing.mesh.documents.text import Unreadable, documents_in
from routing.mesh.documents.wire_names import member_names
from routing.mesh.model.policies import READ
from routing.mesh.model.resources import Resource
from routing.mesh.problem import Problem, Severity

SUFFIXES: Final = {".json", ".yaml", ".yml", ".template"}
FILE_BYTES_MAX: Final = 8 << 20
FILES_MAX: Final = 10_000
ASIDE: Final = {"clienttoken", "tags", "meshowner"}
"""Members of requests that say nothing of how traffic goes."""
_BY_NAME: Final = (
    "gatewayRoute",
    "route",
    "virtualService",
    "virtualNode",
    "virtualRouter",
    "virtualGateway",
    "policy",
    "mesh",
)


class Found(msgspec.Struct, frozen=True):
    """A resource, and the file that it is from."""

    resource: Resource
    file: str


class Read(msgspec.Struct, frozen=True):
    """What a folder has, and what is wrong with it."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]


def read(place: Path, given: Mapping[str, str]) -> Read:
    """Return the resources of a file or of a folder with all that is below it.

    `given` are values that templates do not have: parameters, and what only a stack knows. Raises OSError.
    """
    found: list[Found] = []
    problems: list[Problem] = []
    for path in files_of(place):
        name = str(path.relative_to(place)) if path != place else path.name
        for each in _in_file(path, given):
            if isinstance(each, Problem):
                problems.append(msgspec.structs.replace(each, file=name))
            else:
                found.append(Found(each, name))
    if not found and not problems:
        problems.append(Problem("", "", "", f"{place} has no App Mesh resource"))
    return Read(tuple(found), tuple(problems))


def files_of(place: Path) -> Sequence[Path]:
    """Return the files that are read; raises OSError."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(f"there is no {place}")
    files = sorted(
        path
        for path in place.rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(place).parts)
    )
    if len(files) > FILES_MAX:
        raise OSError(f"{place} has more than {FILES_MAX} files")
    return files


def _in_file(path: Path, given: Mapping[str, str]) -> Iterator[Resource | Problem]:
    if path.stat().st_size > FILE_BYTES_MAX:
        yield Problem("", "", "", f"is larger than {FILE_BYTES_MAX} bytes")
        return
    try:
        documents = documents_in(path.read_bytes(), path.suffix)
    except Unreadable as error:
        yield Problem("", "", "", str(error))
        return
    got = [each for document in documents for each in _in_document(document, given)]
    yield from got or [Problem("", "", "", "has no App Mesh resource", Severity.WARNING)]


def _in_document(document: Any, given: Mapping[str, str]) -> Iterator[Resource | Problem]:
    if isinstance(document, list):
        for each in document:
            yield from _in_document(each, given)
    elif cloudformation.is_template(document):
        yield from _in_template(document, given)
    elif isinstance(document, dict):
        yield from _in_answer(document)


def _in_template(document: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Resource | Problem]:
    if "Transform" in document:
        text = f"{document['Transform']} is not applied: what it would change is read as it stands"
        yield Problem("", "", "Transform", text, Severity.UNSUPPORTED)
    for each in cloudformation.drafts_of(document, given):
        if isinstance(each, cloudformation.Draft):
            yield _converted(each.members, each.kind, each.logical, strict=False)
        else:
            yield Problem("", each.logical, each.field, each.text)


def _in_answer(document: dict[str, Any]) -> Iterator[Resource | Problem]:
    """Yield what the AWS CLI prints, or is given."""
    if str(document.get("apiVersion", "")).startswith("appmesh.k8s.aws/"):
        metadata = document.get("metadata")
        name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
        text = f"{document['apiVersion']} {document.get('kind')} of Kubernetes is not supported"
        yield Problem("", name, "apiVersion", text, Severity.UNSUPPORTED)
        return
    wrapped = [name for name in document if name in READ and isinstance(document[name], dict)]
    for kind in wrapped:
        yield _converted(document[kind], READ[kind], kind)
    if wrapped:
        return
    named = next((kind for kind in _BY_NAME if f"{kind}Name" in document), None)
    if named is not None and ("spec" in document or named == "mesh"):
        yield _converted(document, READ[named], named)
    elif "spec" in document and "apiVersion" not in document:
        text = (
            "a spec without names, which were options of the AWS CLI: add meshName and those of the resource"
        )
        yield Problem("", "", "spec", text, Severity.UNSUPPORTED)
    elif listed := [key for key in document if str(key).removesuffix("s") in READ or key == "meshes"]:
        text = f"a list of {listed[0]} has no spec: describe each"
        yield Problem("", "", str(listed[0]), text, Severity.UNSUPPORTED)


def _converted(
    value: dict[str, Any], kind: type[Resource], logical: str, *, strict: bool = True
) -> Resource | Problem:
    kept = {key: inner for key, inner in value.items() if str(key).casefold() not in ASIDE}
    name = _named(kept, kind) or logical
    try:
        return msgspec.convert(kept, kind, strict=strict)
    except msgspec.ValidationError as error:
        text, _, field = str(error).rpartition(" - at `$")
        return Problem("", name, field.strip("`.") if text else "", text or str(error))


def _named(value: dict[str, Any], kind: type[Resource]) -> str:
    """Return the end of the ARN that a resource would have, as far as its names are there."""
    own = f"{kind.__name__[0].lower()}{kind.__name__[1:]}"
    names = [name for name in member_names(kind) if name.endswith("Name")]
    if any(not isinstance(value.get(name), str) for name in names):
        return ""
    parents = [name for name in names if name not in {"meshName", f"{own}Name"}]
    parts = [f"mesh/{value['meshName']}"]
    parts += [f"{name.removesuffix('Name')}/{value[name]}" for name in parents]
    if own != "mesh":
        parts.append(f"{own}/{value[f'{own}Name']}")
    return "/".join(parts)
