"""Resources as files that are read again: one resource a file, under names that every file system takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from routing.mesh.model.resources import Resource

SUFFIX: Final = ".json"
NAME_CHARACTERS_MAX: Final = 200
"""Of a file; a longer one ends with the hash of the name, which is inside of the file as it is."""
DIGEST_CHARACTERS: Final = 16


def file_of(resource: Resource) -> Path:
    """Return the path of a resource's file: MESH/KIND/NAME.json, and routes below their router or gateway."""
    named = [each for each in msgspec.structs.fields(resource) if each.name.endswith("_name")]
    mesh, *others = [(each.encode_name.removesuffix("Name"), getattr(resource, each.name)) for each in named]
    parts = [_safe(mesh[1])]
    for kind, name in others:
        parts += [kind, _safe(name)]
    if not others:
        parts.append("mesh")
    return Path(*parts[:-1], parts[-1] + SUFFIX)


def document_of(resource: Resource) -> dict[str, Any]:
    """Return a resource as the input of `aws appmesh create-*`."""
    made: dict[str, Any] = msgspec.to_builtins(resource)
    made.pop("metadata", None)
    made.pop("status", None)
    return made


def written(resource: Resource, folder: Path) -> Path:
    """Write a resource below a folder, and return where; raises OSError."""
    path = folder / file_of(resource)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document_of(resource)), indent=2) + b"\n")
    return path


def _safe(name: str) -> str:
    quoted = quote(name, safe="")
    if len(quoted) > NAME_CHARACTERS_MAX:
        digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST_CHARACTERS]
        quoted = f"{quoted[: NAME_CHARACTERS_MAX - DIGEST_CHARACTERS]}~{digest}"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
