"""From CloudFormation's names (`TLS`, `AWSCloudMap`) to those of the API (`tls`, `awsCloudMap`)."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from routing.mesh.model.resources import Resource


def as_in_the_api(properties: dict[str, Any], kind: type[Resource]) -> Any:
    """Return the properties of a resource under the names of the API; unknown ones stay as they are.

    The two differ only in the case of letters, so that what is one name without its case is one member.
    """
    return _renamed(properties, inspect.type_info(kind))


def _renamed(value: Any, of: inspect.Type) -> Any:
    while isinstance(of, inspect.Metadata):
        of = of.type
    if isinstance(of, inspect.UnionType):
        (of, *_) = [arm for arm in of.types if not isinstance(arm, inspect.NoneType)]
        return _renamed(value, of)
    if isinstance(value, dict) and isinstance(of, inspect.StructType):
        fields = {field.encode_name.casefold(): field for field in of.fields}
        made = {}
        for key, inner in value.items():
            field = fields.get(str(key).casefold())
            if field is None:
                made[key] = inner
            else:
                made[field.encode_name] = _renamed(inner, field.type)
        return made
    if isinstance(value, list) and isinstance(of, inspect.VarTupleType):
        return [_renamed(inner, of.item_type) for inner in value]
    return value


def member_names(kind: type[Resource]) -> set[str]:
    """Return the members of a resource as the API names them."""
    return {field.encode_name for field in msgspec.structs.fields(kind)}
