"""From a request to values: path parameters, query and body, each refused by name when it is wrong."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from multidict import MultiMapping

from services.web.operations import JSON, NoBody, Operation, Streamed
from services.web.refusal import Refused, invalid


def check_path(path: Mapping[str, str], patterns: Mapping[str, str]) -> None:
    """Refuse a path parameter that does not match its pattern."""
    for name, value in path.items():
        if re.fullmatch(patterns[name], value) is None or value in {".", ".."}:
            raise invalid(f"{name}: does not match {patterns[name]}")


def query_of(kind: type[msgspec.Struct], query: MultiMapping[str]) -> Any:
    """Return a query as a struct; a parameter that is given twice is one that takes a list."""
    lists = _lists(kind)
    values: dict[str, Any] = {}
    for name, value in query.items():
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise invalid(f"{name[:64]}: given more than once")
        else:
            values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(said(error)) from error


@functools.cache
def _lists(kind: type[msgspec.Struct]) -> frozenset[str]:
    fields = msgspec.inspect.type_info(kind)
    assert isinstance(fields, msgspec.inspect.StructType)
    kinds = (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)
    return frozenset(field.encode_name for field in fields.fields if isinstance(_bare(field.type), kinds))


def _bare(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Return a type without what is only said of it."""
    return kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind


def media_type_of(operation: Operation, content_type: str) -> str:
    """Return the media type of a body without its parameters, when the operation takes it."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in operation.body_types:
        expected = " or ".join(operation.body_types)
        raise Refused(415, "unsupported-media-type", f"the body must be {expected}")
    return media_type


def body_of(operation: Operation, content: bytes) -> Any:
    """Return a body as the operation's type."""
    if operation.body is Streamed:
        return Streamed()
    if operation.body is NoBody:
        if content:
            raise invalid("this operation takes no body")
        return NoBody()
    try:
        return _decoded(operation.body, content)
    except msgspec.ValidationError as error:
        raise invalid(said(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "malformed-json", f"the body is not {JSON}") from error


def _decoded(kind: Any, content: bytes) -> Any:
    """Return a body as a type; 1.0 is an integer as well, as JSON Schema has it."""
    try:
        return _decoder(kind).decode(content)
    except msgspec.ValidationError:
        return msgspec.convert(_whole(msgspec.json.decode(content)), kind)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def said(error: msgspec.ValidationError) -> str:
    """Return what msgspec says is wrong, as `field: what`; it names fields and types, never values."""
    message, _, where = str(error).partition(" - at `")
    where = where.removesuffix("`").removeprefix("$").removeprefix(".").removeprefix("key in ")
    text = f"{message[:1].lower()}{message[1:]}"
    return f"{where}: {text}"[:500] if where else text[:500]
