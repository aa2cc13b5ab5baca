"""The OpenAPI 3.1 document of a service, made of its operations.

It has no security: the API gateway, which publishes it, adds that, with the limits it keeps itself.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from services.web.operations import HEADER_CHARACTERS_MAX, Content, NoQuery, Operation, Operations, Streamed
from services.web.page import PageQuery
from services.web.refusal import Problem

REFERENCE: Final = "#/components/schemas/{name}"
NOT_EMPTY: Final = {"schema": {"minLength": 1}}
"""What can be said of a text that is read as it comes; any JSON is one too, so it has no type."""
PROBLEM_JSON: Final = "application/problem+json"
STATUS_TEXT: Final = {
    200: "What was asked for.",
    201: "Made.",
    202: "Taken on.",
    204: "Done.",
    304: "Not changed.",
    400: "The request is not as described here; the detail names the parameter or the field.",
    401: "Without a passport of the API gateway.",
    403: "The caller may not do this: a scope is missing, or it belongs to another tenant or device.",
    413: "The body is too large.",
    415: "The body is of a type that this operation does not take.",
    422: "The request is as described here, and makes no sense all the same; the detail says why.",
}


def document(operations: Operations[Any]) -> dict[str, Any]:
    """Return the document as JSON values."""
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    found = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, operations, found
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": operations.title,
            "description": operations.description,
            "version": operations.version,
        },
        "tags": [{"name": tag} for tag in sorted({operation.tag for operation in operations})],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def encoded(operations: Operations[Any]) -> bytes:
    """Return the document as it is checked in."""
    return msgspec.json.format(msgspec.json.encode(_whole(document(operations))), indent=2) + b"\n"


def _whole(value: Any) -> Any:
    """Write 1.0 as 1: of two equal types `Annotated` keeps the first, however its limits are written."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kinds(operations: Operations[Any]) -> list[Any]:
    """Return every type that the operations speak of, once."""
    kinds: dict[str, Any] = {repr(Problem): Problem}
    for operation in operations:
        spoken = [operation.body] if _has_schema(operation) else []
        for answer in operation.answers.values():
            spoken += answer.media.values() if isinstance(answer, Content) else [answer]
        kinds |= {repr(kind): kind for kind in spoken if kind is not None}
    return list(kinds.values())


def _has_schema(operation: Operation) -> bool:
    return operation.takes_body and operation.body is not Streamed


def _operation(operation: Operation, operations: Operations[Any], found: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        **({"description": operation.description} if operation.description else {}),
        "tags": [operation.tag],
        **({"x-headworks-scope": operation.scope} if operation.scope else {}),
        "parameters": [
            *(_path_parameter(name, operations.pattern(name)) for name in operation.parameters),
            *_query_parameters(operation.query),
            *(_header(name, text) for name, text in operation.headers.items()),
        ],
    }
    if operation.takes_body:
        content = {"schema": found[repr(operation.body)]} if _has_schema(operation) else NOT_EMPTY
        media = dict.fromkeys(operation.body_types, content)
        described["requestBody"] = {"required": True, "content": media}
    described["responses"] = _responses(operation, found)
    return described


def _path_parameter(name: str, pattern: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string", "maxLength": HEADER_CHARACTERS_MAX},
    }


def _query_parameters(query: type[msgspec.Struct]) -> list[dict[str, Any]]:
    if query is NoQuery:
        return []
    _, components = msgspec.json.schema_components([query], ref_template=REFERENCE)
    own = components.pop(query.__name__)
    required = own.get("required", [])
    parameters = []
    for name, schema in own["properties"].items():
        inner = dict(_resolved(schema, components))
        text = inner.pop("description", "")
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                **({"description": text} if text else {}),
                "schema": inner,
            }
        )
    return parameters


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema with what it refers to in its place: enumerations, mostly."""
    reference = schema.get("$ref", "").rpartition("/")[2]
    if reference:
        return {**components[reference], **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _responses(operation: Operation, found: dict[str, Any]) -> dict[str, Any]:
    responses = {str(status): _answer(status, answer, found) for status, answer in operation.answers.items()}
    usual = {400, 401, 403} | ({413, 415} if operation.takes_body else set())
    if operation.takes_body or issubclass(operation.query, PageQuery):
        usual.add(422)
    refusals = {**{status: STATUS_TEXT[status] for status in usual}, **operation.refusals}
    problem = {PROBLEM_JSON: {"schema": found[repr(Problem)]}}
    for status, text in sorted(refusals.items()):
        responses[str(status)] = {"description": text, "content": problem}
    return responses


def _answer(status: int, answer: Any, found: dict[str, Any]) -> dict[str, Any]:
    if answer is None:
        return {"description": STATUS_TEXT[status]}
    if isinstance(answer, Content):
        media = {
            media_type: {"schema": {"type": "string"} if kind is None else found[repr(kind)]}
            for media_type, kind in answer.media.items()
        }
        return {"description": answer.description, "content": media}
    return {
        "description": STATUS_TEXT[status],
        "content": {"application/json": {"schema": found[repr(answer)]}},
    }
