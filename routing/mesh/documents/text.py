"""JSON and YAML as plain data.

YAML is read with PyYAML's safe loader, changed in three ways: CloudFormation's short tags (`!Ref`) become
their long form, a key that stands twice is an error, and dates stay text.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import msgspec
import yaml

SHORT: Final = {"Ref": "Ref", "Condition": "Condition"}
NULL: Final = "tag:yaml.org,2002:null"
ALIASES_MAX: Final = 1000
"""YAML that repeats itself more often is made to exhaust memory."""


class Unreadable(Exception):
    """A file is neither JSON nor YAML."""


def documents_in(data: bytes, suffix: str) -> list[Any]:
    """Return the documents of a file: YAML may have several; raises Unreadable."""
    try:
        if suffix == ".json":
            return [msgspec.json.decode(data)]
        return [each for each in yaml.load_all(data, _Loader) if each is not None]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"is not JSON: {error}") from error
    except yaml.YAMLError as error:
        raise Unreadable("is not YAML: " + " ".join(str(error).split())) from error
    except RecursionError as error:
        raise Unreadable("is nested too deep") from error


def composed(text: str) -> list[yaml.Node]:
    """Return the documents of a text with the places of what is in them; raises yaml.YAMLError."""
    return [node for node in yaml.compose_all(text, _Loader) if node.tag != NULL]


class _Loader(yaml.SafeLoader):
    """Reads what CloudFormation and the AWS CLI write."""

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, and count aliases."""
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > ALIASES_MAX:
                raise yaml.YAMLError(f"more than {ALIASES_MAX} aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  # PyYAML's own
        """Construct a mapping whose keys are all different."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def tagged(self, suffix: str, node: yaml.Node) -> dict[str, Any]:
        """Return the long form of a short tag."""
        value: Any
        if isinstance(node, yaml.ScalarNode):
            value = self.construct_scalar(node)
        elif isinstance(node, yaml.SequenceNode):
            value = self.construct_sequence(node, deep=True)
        else:
            assert isinstance(node, yaml.MappingNode)
            value = self.construct_mapping(node, deep=True)
        if suffix == "GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {SHORT.get(suffix, f"Fn::{suffix}"): value}


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_multi_constructor("!", _Loader.tagged)
