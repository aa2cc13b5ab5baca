"""CloudFormation's functions, as far as they can be decided without a stack.

What only AWS knows, such as the DNS name of a load balancer, is Unresolved unless its value is given:
parameters and given values are looked up as `Name`, `Resource.Attribute` or `AWS::Region`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from routing.mesh.model.policies import PREFIX, READ

DEPTH_MAX: Final = 100
NO_VALUE: Final = object()
"""What `AWS::NoValue` is: the property is not there."""
PSEUDO: Final = {"AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com"}
APP_MESH: Final = "AWS::AppMesh::"
TYPES: Final = {
    f"{PREFIX if name == 'policy' else APP_MESH}{kind.__name__}": kind for name, kind in READ.items()
}
"""The resources by their type in a template."""
NAME_OF: Final = {name: f"{kind.__name__}Name" for name, kind in TYPES.items()}
_HOLE: Final = re.compile(r"\$\{(!?)([^}]*)\}")


class Unresolved(Exception):
    """A value cannot be decided; `path` is where it stands, below where evaluation began."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class Template:
    """A template with the values that were given for it."""

    def __init__(self, document: Mapping[str, Any], given: Mapping[str, str]) -> None:
        self.resources = _section(document, "Resources")
        self._parameters = _section(document, "Parameters")
        self._conditions = _section(document, "Conditions")
        self._mappings = _section(document, "Mappings")
        self._given = given
        self._depth = 0

    def value(self, of: Any, path: str = "") -> Any:
        """Return what `of` is without functions; raises Unresolved."""
        self._depth += 1
        try:
            if self._depth > DEPTH_MAX:
                raise Unresolved(f"is nested deeper than {DEPTH_MAX}, or in a circle", path)
            return self._value(of, path)
        finally:
            self._depth -= 1

    def _value(self, of: Any, path: str) -> Any:
        if isinstance(of, dict):
            if len(of) == 1:
                ((name, argument),) = of.items()
                if name == "Ref" or str(name).startswith("Fn::"):
                    return self._called(str(name), argument, path)
            made = {
                key: self.value(inner, f"{path}.{key}" if path else str(key)) for key, inner in of.items()
            }
            return {key: inner for key, inner in made.items() if inner is not NO_VALUE}
        if isinstance(of, list):
            items = [self.value(inner, f"{path}[{index}]") for index, inner in enumerate(of)]
            return [inner for inner in items if inner is not NO_VALUE]
        return of

    def _called(self, name: str, argument: Any, path: str) -> Any:
        function = _FUNCTIONS.get(name)
        if function is None:
            raise Unresolved(f"{name} is not supported", path)
        try:
            return function(self, argument)
        except Unresolved as error:
            raise Unresolved(str(error), error.path or path) from error
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise Unresolved(f"{name} is not written as it must be", path) from error

    def properties(self, resource: Mapping[str, Any]) -> dict[str, Any]:
        """Return the properties of a resource without functions; raises Unresolved."""
        properties = self.value(resource.get("Properties") or {})
        if not isinstance(properties, dict):
            raise Unresolved("is no object", "Properties")
        return properties

    def imported(self, argument: Any) -> Any:
        """Return what another stack exports, which has to be given."""
        name = str(self.value(argument))
        if name not in self._given:
            raise Unresolved(f"{name} is exported by another stack; give {name}=VALUE")
        return self._given[name]

    def included(self, resource: Mapping[str, Any]) -> bool:
        """Return whether the condition of a resource, if it has one, holds; raises Unresolved."""
        name = resource.get("Condition")
        if name is None:
            return True
        try:
            return self._holds({"Condition": name})
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise Unresolved(f"condition {name} is not written as it must be", "Condition") from error

    def name(self, logical: str) -> str:
        """Return the name of an App Mesh resource: that of the template's, or its logical id."""
        resource = self.resources[logical]
        named = properties_of(resource).get(NAME_OF[resource["Type"]])
        value = NO_VALUE if named is None else self.value(named)
        return logical if value is NO_VALUE else str(value)

    def ref(self, name: str) -> Any:
        """Return what `Ref` gives."""
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self._given:
            value: Any = self._given[name]
            kind = self._parameters.get(name, {}).get("Type", "String")
            return (
                str(value).split(",") if kind == "CommaDelimitedList" or kind.startswith("List<") else value
            )
        if name in self._parameters:
            return self._default(name)
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.resources:
            if self.resources[name].get("Type") in NAME_OF:
                return self.attribute([name, "Arn"])
            raise Unresolved(f"what {name} is called is known only to its stack; give {name}=VALUE")
        raise Unresolved(f"there is no {name}: no parameter and no resource; or give {name}=VALUE")

    def _default(self, name: str) -> Any:
        parameter = self._parameters[name]
        kind = parameter.get("Type", "String")
        if kind.startswith("AWS::SSM::") or "Default" not in parameter:
            raise Unresolved(f"parameter {name} has no value; give {name}=VALUE")
        value = parameter["Default"]
        return str(value).split(",") if kind == "CommaDelimitedList" or kind.startswith("List<") else value

    def attribute(self, argument: Any) -> Any:
        """Return what `Fn::GetAtt` gives."""
        logical, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
        if f"{logical}.{attribute}" in self._given:
            return self._given[f"{logical}.{attribute}"]
        if logical not in self.resources:
            raise Unresolved(f"there is no resource {logical}")
        resource = self.resources[logical]
        if resource.get("Type") in NAME_OF and attribute == NAME_OF[resource["Type"]]:
            return self.name(logical)
        properties = properties_of(resource)
        if attribute in properties:
            return self.value(properties[attribute])
        if resource.get("Type") in NAME_OF and attribute == "Arn":
            return self._arn(logical)
        where = f"{logical}.{attribute}"
        raise Unresolved(f"{where} is known only to its stack; give {where}=VALUE")

    def _arn(self, logical: str) -> str:
        """Return an ARN that ends as that of the service would."""
        kind = self.resources[logical]["Type"].rpartition("::")[2]
        mesh = self.name(logical) if kind == "Mesh" else self.attribute([logical, "MeshName"])
        end = "" if kind == "Mesh" else f"/{kind[0].lower()}{kind[1:]}/{self.name(logical)}"
        partition, region, account = (
            self.ref(f"AWS::{part}") for part in ("Partition", "Region", "AccountId")
        )
        return f"arn:{partition}:appmesh:{region}:{account}:mesh/{mesh}{end}"

    def sub(self, argument: Any) -> str:
        """Return what `Fn::Sub` gives."""
        text, local = argument if isinstance(argument, list) else (argument, {})

        def filled(hole: re.Match[str]) -> str:
            literal, name = hole[1], hole[2].strip()
            if literal:
                return "${" + hole[2] + "}"
            if name in local:
                return str(self.value(local[name]))
            if "." in name and name not in self._given:
                return str(self.attribute(name))
            return str(self.ref(name))

        return _HOLE.sub(filled, text)

    def join(self, argument: Any) -> str:
        """Return what `Fn::Join` gives."""
        delimiter, parts = argument
        return str(delimiter).join(str(part) for part in self.value(parts))

    def select(self, argument: Any) -> Any:
        """Return what `Fn::Select` gives."""
        index, of = argument
        return self.value(of)[int(self.value(index))]

    def split(self, argument: Any) -> list[str]:
        """Return what `Fn::Split` gives."""
        delimiter, text = argument
        return str(self.value(text)).split(delimiter)

    def find_in_map(self, argument: Any) -> Any:
        """Return what `Fn::FindInMap` gives."""
        name, top, second = (self.value(part) for part in argument[:3])
        try:
            return self._mappings[name][str(top)][second]
        except KeyError:
            raise Unresolved(f"the map {name} has no {top}, {second}") from None

    def chosen(self, argument: Any) -> Any:
        """Return what `Fn::If` gives."""
        name, yes, no = argument
        return self.value(yes if self._holds({"Condition": name}) else no)

    def _holds(self, condition: Any) -> bool:
        if not isinstance(condition, dict) or len(condition) != 1:
            raise Unresolved("a condition is not written as it must be")
        ((name, argument),) = condition.items()
        match name:
            case "Condition":
                if not isinstance(argument, str) or argument not in self._conditions:
                    raise Unresolved(f"there is no condition {argument}")
                self._depth += 1
                if self._depth > DEPTH_MAX:
                    raise Unresolved(f"condition {argument} goes in a circle")
                try:
                    return self._holds(self._conditions[argument])
                finally:
                    self._depth -= 1
            case "Fn::Equals":
                left, right = (self.value(side) for side in argument)
                return _text(left) == _text(right)
            case "Fn::Not":
                return not self._holds(argument[0])
            case "Fn::And":
                return all(self._holds(each) for each in argument)
            case "Fn::Or":
                return any(self._holds(each) for each in argument)
            case _:
                raise Unresolved(f"{name} is not supported in a condition")


def properties_of(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the properties of a resource, of which there may be none."""
    properties = resource.get("Properties")
    return properties if isinstance(properties, dict) else {}


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name) or {}
    return section if isinstance(section, dict) else {}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_FUNCTIONS: Final[dict[str, Callable[[Template, Any], Any]]] = {
    "Ref": Template.ref,
    "Fn::GetAtt": Template.attribute,
    "Fn::Sub": Template.sub,
    "Fn::Join": Template.join,
    "Fn::Select": Template.select,
    "Fn::Split": Template.split,
    "Fn::FindInMap": Template.find_in_map,
    "Fn::If": Template.chosen,
    "Fn::ImportValue": Template.imported,
}
