"""Changes numbers in a document where they stand: its comments, order and layout stay.

A document is edited only if it then says exactly what it said before, but for these numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from routing.mesh.documents import cloudformation
from routing.mesh.documents.text import Unreadable, composed, documents_in

Path = tuple[int | str, ...]
"""From the documents of a file to a value in them."""


class NotEditable(Exception):
    """The document cannot be changed in place; the text says why."""


def route_in(documents: Sequence[Any], names: dict[str, str]) -> Path | None:
    """Return where a plain resource with these names is, or None; templates are left aside."""
    for at, document in enumerate(documents):
        for path, value in _plain(document, (at,)):
            if all(value.get(member) == name for member, name in names.items()) and "spec" in value:
                return path
    return None


def at(documents: Any, path: Path) -> Any:
    """Return what is at a path."""
    for step in path:
        documents = documents[step]
    return documents


def renumbered(data: bytes, suffix: str, changes: dict[Path, int]) -> bytes:
    """Return a file with other numbers at these paths; raises NotEditable and Unreadable."""
    before = documents_in(data, suffix)
    try:
        text = data.decode()
        nodes = composed(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise NotEditable(
            "its text cannot be changed in place: write it as YAML, or JSON without tabs"
        ) from error
    spans = []
    for path, number in changes.items():
        node = _node(nodes, path)
        spans.append((node.start_mark.index, node.end_mark.index, str(number)))
    for start, end, written in sorted(spans, reverse=True):
        text = text[:start] + written + text[end:]
    made = text.encode()
    wanted = copy.deepcopy(before)
    for path, number in changes.items():
        at(wanted, path[:-1])[path[-1]] = number
    try:
        same = documents_in(made, suffix) == wanted
    except Unreadable:
        same = False
    if not same:
        raise NotEditable("its weights do not stand in it as plain numbers of their own")
    return made


def _plain(value: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the resources that may be in a document, as `reading` knows them."""
    if isinstance(value, list):
        for place, each in enumerate(value):
            yield from _plain(each, (*path, place))
    elif isinstance(value, dict) and not cloudformation.is_template(value):
        if isinstance(value.get("route"), dict):
            yield (*path, "route"), value["route"]
        else:
            yield path, value


def _node(nodes: Sequence[yaml.Node], path: Path) -> yaml.Node:
    node = nodes[int(path[0])]
    for step in path[1:]:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(step)]
        elif isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == step]
            if len(found) != 1:
                raise NotEditable(f"{step} is not in it as a member of its own")
            node = found[0]
    return node
