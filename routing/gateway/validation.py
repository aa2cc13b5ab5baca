"""Whether a request is what its operation says: path, query, headers, media type and body.

Validators are compiled once, when routes are loaded. A problem says where and what, never a value: names that
come from the peer are cut to 80 characters, and there are at most 20 problems. A large body has only its
first problem told, because finding all of them costs more the more there are.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import jsonschema_rs
import msgspec
from multidict import MultiMapping

from routing.gateway import own_api
from routing.gateway.documents import REFERENCES_MAX, Document, DocumentError, Documents, Node, Operation
from routing.gateway.headers import OURS
from routing.gateway.openapi import IDEMPOTENCY_KEY, takes_idempotency_key
from routing.gateway.routes_file import Route, Routes

PROBLEMS_MAX: Final = 20
NAME_CHARACTERS_MAX: Final = 80
DEPTH_MAX: Final = 64
"""How deep arrays and objects of a body may be in one another."""
NODES_TOLD_MAX: Final = 2_000
"""Bodies with more values than this have their first problem told only."""
VALUES_MAX: Final = 100
"""How often a parameter that takes a list may be given."""
BACKTRACKS_MAX: Final = 10_000
INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
BOOLEANS: Final = {"true": True, "false": False}
NO_HEADERS: Final[Mapping[str, str]] = {}
NO_PARAMETERS: Final = frozenset({"accept", "content-type", "authorization"})

Problem = dict[str, str]
"""`where` it is, such as `query.limit` or `body.tags[2]`, and the `problem` there."""


class Validation:
    """The compiled validators of a set of routes; replaced as a whole when routes are."""

    def __init__(self, routes: Routes, documents: Documents) -> None:
        """Compile all; raises `DocumentError`."""
        self._checks: dict[str, _Check] = {}
        own = own_api.document().operations
        for route in routes.routes:
            kind = routes.upstreams[route.upstream].kind
            if kind == "internal":
                operation = own.get(own_api.operation_of(route))
            else:
                operation = documents.operation(route.operation) if route.operation else None
            if operation is not None:
                added = [IDEMPOTENCY_KEY] if takes_idempotency_key(route, operation, kind) else []
                self._checks[route.name] = _Check(operation, added)

    def unsupported(self, route: Route, content_type: str, body: bytes) -> str:
        """Return why the media type of a body is not taken (415), or nothing."""
        check = self._checks.get(route.name)
        if check is None or not body or not check.media or check.media_type(content_type) is not None:
            return ""
        return f"the body must be {' or '.join(check.media)}"

    def validate(
        self,
        route: Route,
        parameters: Mapping[str, str],
        query: MultiMapping[str],
        content_type: str,
        body: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> list[Problem]:
        """Return what is wrong with a request; nothing for a route without an operation.

        Hot: guarded by bench/test_validation.py::test_device_create.
        """
        check = self._checks.get(route.name)
        if check is None:
            return []
        problems = check.of_path(parameters)
        problems += check.of_query(query)
        problems += check.of_headers(headers)
        problems += check.of_body(content_type, body)
        return problems[:PROBLEMS_MAX]


class _Check:
    """The validators of one operation."""

    __slots__ = ("_headers", "_path", "_query", "_required", "media")

    def __init__(self, operation: Operation, added: list[Node]) -> None:
        document = operation.document
        named: dict[str, dict[str, _Parameter]] = {"path": {}, "query": {}, "header": {}}
        for parameter in [*operation.parameters, *added]:
            if parameter["in"] in named and not _is_ours(parameter):
                compiled = _Parameter(operation, parameter)
                named[parameter["in"]][parameter["name"]] = compiled
        self._path, self._query, self._headers = named["path"], named["query"], named["header"]
        body = document.resolve(operation.content.get("requestBody", {}))
        self._required = bool(body.get("required", False))
        self.media = {
            media_type.lower(): _body_validator(operation, media_type, content)
            for media_type, content in body.get("content", {}).items()
        }

    def media_type(self, content_type: str) -> str | None:
        """Return the media type of the operation that a Content-Type is of, or None."""
        given = content_type.partition(";")[0].strip().lower()
        for media_type in (given, f"{given.partition('/')[0]}/*", "*/*"):
            if given and media_type in self.media:
                return media_type
        return None

    def of_path(self, parameters: Mapping[str, str]) -> list[Problem]:
        problems: list[Problem] = []
        for name, parameter in self._path.items():
            text = parameters.get(name)  # a route may have left a parameter out of its path
            if text is not None:
                problems += parameter.problems(f"path.{name}", [text])
        return problems

    def of_query(self, query: MultiMapping[str]) -> list[Problem]:
        unknown = (name for name in set(query) if name not in self._query)
        problems = [
            _problem(f"query.{name}", "there is no such parameter")
            for name in itertools.islice(unknown, PROBLEMS_MAX)
        ]
        for name, parameter in self._query.items():
            if name in query:
                problems += parameter.problems(f"query.{name}", query.getall(name))
            elif parameter.required:
                problems.append(_problem(f"query.{name}", "is required"))
        return problems

    def of_headers(self, headers: Mapping[str, str]) -> list[Problem]:
        problems: list[Problem] = []
        for name, parameter in self._headers.items():
            text = headers.get(name)
            if text is not None:
                problems += parameter.problems(f"header.{name}", [text])
            elif parameter.required:
                problems.append(_problem(f"header.{name}", "is required"))
        return problems

    def of_body(self, content_type: str, body: bytes) -> list[Problem]:
        if not body:
            return [_problem("body", "is required")] if self._required else []
        if not self.media:
            return [_problem("body", "this operation takes no body")]
        media_type = self.media_type(content_type)
        if media_type is None:
            return [_problem("body", f"must be {' or '.join(self.media)}")]
        validator = self.media[media_type]
        if validator is None:
            return []
        value, wrong = decoded(body)
        if wrong:
            return [_problem("body", wrong)]
        return _problems(validator, value, "body", few=_nodes(body) <= NODES_TOLD_MAX)


class _Parameter:
    """One parameter of a path or query, which comes as text."""

    __slots__ = ("_kinds", "_many", "_splits", "_validator", "required")

    def __init__(self, operation: Operation, parameter: Node) -> None:
        place = f"{operation.name}: parameter {parameter['name']}"
        schema = parameter.get("schema")
        if not isinstance(schema, dict):
            raise DocumentError(f"document {operation.document.name}: {place} has no schema")
        if parameter.get("style", "form") not in {"form", "simple"}:
            raise DocumentError(f"document {operation.document.name}: {place}: only style form is known")
        self.required = bool(parameter.get("required", False))
        self._kinds = _kinds(operation.document, schema)
        self._many = "array" in self._kinds
        self._splits = self._many and not parameter.get("explode", parameter["in"] == "query")
        if self._many:
            self._kinds = _kinds(operation.document, _items(operation.document, schema))
        self._validator = _compiled(operation.document, schema, place)

    def problems(self, where: str, texts: list[str]) -> list[Problem]:
        """Return what is wrong with the texts of a parameter."""
        if not self._many:
            if len(texts) > 1:
                return [_problem(where, "is given more than once")]
            value = coerced(texts[0], self._kinds)
            if self._validator.is_valid(value):
                return []
            if value is not texts[0] and "string" in self._kinds and self._validator.is_valid(texts[0]):
                return []
            return _problems(self._validator, value, where, few=True)
        if self._splits:
            texts = [part for text in texts for part in text.split(",", VALUES_MAX)]
        if len(texts) > VALUES_MAX:
            return [_problem(where, f"has more than {VALUES_MAX} values")]
        return _problems(self._validator, [coerced(text, self._kinds) for text in texts], where, few=True)


def _is_ours(parameter: Node) -> bool:
    """Return whether a header is none that callers are asked for here (OpenAPI 3.1, Parameter Object)."""
    name = parameter["name"].lower()
    return parameter["in"] == "header" and (name in NO_PARAMETERS or name.startswith(OURS))


def coerced(text: str, kinds: frozenset[str]) -> Any:
    """Return the number or the truth that a text is, if one of `kinds` is wanted; else the text."""
    if "integer" in kinds and INTEGER.fullmatch(text):
        return int(text)
    if "number" in kinds and NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    if "boolean" in kinds and text in BOOLEANS:
        return BOOLEANS[text]
    return text


def decoded(body: bytes) -> tuple[Any, str]:
    """Return (value, "") of a JSON body, or (None, why it is none)."""
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        return None, f"is deeper than {DEPTH_MAX}"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, "is not JSON"
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and _deeper(value, DEPTH_MAX):
        return None, f"is deeper than {DEPTH_MAX}"
    return value, ""


def _deeper(value: Any, depth_max: int) -> bool:
    """Return whether a value has more than `depth_max` levels; goes level by level, so never deep itself."""
    level = [value]
    for _ in range(depth_max):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _nodes(body: bytes) -> int:
    """Return about how many values a JSON body has, never fewer than it has."""
    return body.count(b",") + body.count(b":") + body.count(b"[") + 1


def _compiled(document: Document, schema: Node, place: str) -> jsonschema_rs.Draft202012Validator:
    root = {**schema, "components": document.content.get("components", {})}
    try:
        return jsonschema_rs.Draft202012Validator(
            root,
            offline=True,
            validate_formats=True,
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS_MAX),
        )
    except ValueError as error:
        why = str(error).partition("\n")[0]
        raise DocumentError(f"document {document.name}: {place}: {why}") from error


def _body_validator(
    operation: Operation, media_type: str, content: Node
) -> jsonschema_rs.Draft202012Validator | None:
    """Return the validator of a JSON body, or None for what is not JSON or has no schema."""
    subtype = media_type.lower().partition(";")[0].rpartition("/")[2]
    if "schema" not in content or not (subtype == "json" or subtype.endswith("+json")):
        return None
    return _compiled(operation.document, content["schema"], f"{operation.name}: {media_type}")


def _kinds(document: Document, schema: Node, depth: int = 0) -> frozenset[str]:
    """Return the JSON types that a schema speaks of."""
    if depth > REFERENCES_MAX:
        return frozenset()
    schema = document.resolve(schema)
    named = schema.get("type", [])
    found = {named} if isinstance(named, str) else set(named)
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(keyword, []):
            if isinstance(part, dict):
                found |= _kinds(document, part, depth + 1)
    if not found:
        found = {_kind(value) for value in schema.get("enum", [schema.get("const", "")])}
    return frozenset(found)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if isinstance(value, float) else "integer"
    return "string"


def _items(document: Document, schema: Node) -> Node:
    """Return the schema of the items of an array, which may be one of several alternatives."""
    schema = document.resolve(schema)
    if isinstance(schema.get("items"), dict):
        return schema["items"]  # type: ignore[no-any-return]
    for part in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        if isinstance(part, dict) and isinstance(document.resolve(part).get("items"), dict):
            return document.resolve(part)["items"]  # type: ignore[no-any-return]
    return {"type": "string"}


def _problems(
    validator: jsonschema_rs.Draft202012Validator, value: Any, where: str, *, few: bool
) -> list[Problem]:
    """Return what is wrong with a value; without `few`, only the first."""
    if validator.is_valid(value):
        return []
    if not few:
        try:
            validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return [_told(error, where)]
    return [_told(error, where) for error in itertools.islice(validator.iter_errors(value), PROBLEMS_MAX)]


def _told(error: jsonschema_rs.ValidationError, where: str) -> Problem:
    """Say what is wrong with what the schema says; of the peer's text only names, cut."""
    kind = error.kind
    alternatives = getattr(kind, "context", None)
    if alternatives is not None and kind.name == "anyOf":
        meant = [branch for branch in alternatives if not _only_null(branch)]
        if len(meant) == 1 and meant[0]:
            return _told(meant[0][0], where)
    return _problem(where + _path(error.instance_path), _what(kind.name, kind.as_dict()))


def _only_null(branch: list[jsonschema_rs.ValidationError]) -> bool:
    return (
        len(branch) == 1 and branch[0].kind.name == "type" and branch[0].kind.as_dict()["types"] == ["null"]
    )


def _path(parts: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


SAID: Final = {
    "anyOf": "is none of what it may be",
    "oneOf": "is not exactly one of what it may be",
    "const": "must be {expected_value}",
    "enum": "must be one of {options}",
    "exclusiveMaximum": "must be less than {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "format": "is not a {format}",
    "maximum": "must be at most {limit}",
    "minimum": "must be at least {limit}",
    "maxItems": "has more than {limit} items",
    "minItems": "has fewer than {limit} items",
    "maxLength": "is longer than {limit}",
    "minLength": "is shorter than {limit}",
    "maxProperties": "has more than {limit} members",
    "minProperties": "has fewer than {limit} members",
    "multipleOf": "must be a multiple of {multiple_of}",
    "pattern": "does not match {pattern}",
    "required": "{property} is required",
    "type": "must be {types}",
    "uniqueItems": "has an item twice",
    "additionalProperties": "there is no {unexpected}",
    "unevaluatedProperties": "there is no {unexpected}",
}
SAID_CHARACTERS_MAX: Final = 300


def _what(keyword: str, terms: Node) -> str:
    """Return what a keyword of a schema wants, in words; its terms are the schema's, or names of members."""
    said = {name: _term(name, term) for name, term in terms.items() if name != "context"}
    return SAID.get(keyword, f"does not keep to {keyword}").format_map(said)[:SAID_CHARACTERS_MAX]


def _term(name: str, term: Any) -> str:
    if name in {"unexpected", "types"} and isinstance(term, list):
        return " or ".join(cut(str(part)) for part in term[:3])
    if name == "options" and isinstance(term, list):
        return ", ".join(str(part) for part in term)
    return str(term)


def _problem(where: str, problem: str) -> Problem:
    return {"where": cut(where), "problem": problem}


def cut(text: str) -> str:
    """Return a text that came from a peer, cut to the characters that an answer may repeat."""
    return text if len(text) <= NAME_CHARACTERS_MAX else f"{text[: NAME_CHARACTERS_MAX - 1]}…"
