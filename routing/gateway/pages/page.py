"""The readable page of an OpenAPI document.

Pure: a document in, one HTML page out, with its style and script inside and a Content-Security-Policy that
allows these two and nothing else. Every text of the document is escaped, because `element` escapes what is
not `Html` already.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shlex
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import msgspec

from routing.gateway.documents import METHODS, Node

EXAMPLE_DEPTH_MAX: Final = 6
TYPE_DEPTH_MAX: Final = 4
REFERENCE: Final = re.compile(r"#/components/([A-Za-z]+)/([A-Za-z0-9._-]+)")
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
LINK: Final = re.compile(r"https?://[^\s\"'<>]+")
LIMITS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
    "default": "default {}",
}
FORMATS: Final = {
    "date-time": "2026-01-31T00:00:00Z",
    "date": "2026-01-31",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "somebody@example.com",
    "uri": "https://example.com/",
}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Html:
    """Return an element; children that are not `Html` and all attributes are escaped.

    An attribute whose name Python has for itself ends in `_`; one of `data_` becomes `data-`.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{name}{said}>{inside}</{name}>")


def asset(name: str) -> Html:
    """Return a file that is beside this module."""
    return Html(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy of a page with this one style and this one script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def render(document: Node, *, style: Html, script: Html, document_url: str) -> str:
    """Return the page of a document; `document_url` is where the document itself is."""
    reader = _Reader(document)
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    head = element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", style),
    )
    intro = element(
        "header",
        element("h1", title),
        element("p", info.get("description", ""), class_="soft"),
        element("p", "The same to be read by programs: ", element("a", "openapi.json", href=document_url)),
    )
    body = element(
        "body",
        _contents(reader),
        element("main", intro, *(_group(reader, tag) for tag in reader.tags), _schemas(reader)),
        element("script", script),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


class _Reader:
    """A document, with its operations by tag and its references followed."""

    def __init__(self, document: Node) -> None:
        self.components: Node = document.get("components", {})
        self.server: str = document.get("servers", [{"url": "/"}])[0]["url"].rstrip("/")
        self.said: dict[str, str] = {
            tag["name"]: tag.get("description", "") for tag in document.get("tags", [])
        }
        self.tags: dict[str, list[tuple[str, str, Node]]] = {name: [] for name in self.said}
        for path, item in document.get("paths", {}).items():
            for method in METHODS:
                if method in item:
                    tag = (item[method].get("tags") or [""])[0]
                    self.tags.setdefault(tag, []).append((method, path, item[method]))

    def follow(self, node: Node) -> Node:
        """Return what a reference leads to, or the node."""
        found = REFERENCE.fullmatch(str(node.get("$ref", "")))
        return self.components.get(found[1], {}).get(found[2], {}) if found else node


def _contents(reader: _Reader) -> Html:
    parts = [Html('<input id="search" type="search" placeholder="Search" aria-label="Search" hidden>')]
    for tag, operations in reader.tags.items():
        entries = [
            element(
                "li",
                element("span", method.upper(), class_=f"method {method}"),
                element("a", operation.get("summary") or path, href=f"#{_anchor(operation)}", title=path),
                class_="gone" if operation.get("deprecated") else "here",
                data_search=" ".join(
                    [method, path, _anchor(operation), operation.get("summary", "")]
                ).lower(),
            )
            for method, path, operation in operations
        ]
        parts += [element("h2", tag), element("ul", *entries)]
    return element("nav", *parts, aria_label="Operations")


def _anchor(operation: Node) -> str:
    return f"operation-{operation['operationId']}"


def _group(reader: _Reader, tag: str) -> Html:
    sections = [_operation(reader, *entry) for entry in reader.tags[tag]]
    said = [element("p", reader.said[tag], class_="soft")] if reader.said.get(tag) else []
    return Html("".join([element("h2", tag, class_="tag"), *said, *sections]))


def _operation(reader: _Reader, method: str, path: str, operation: Node) -> Html:
    parts = [
        element(
            "h3",
            element("span", method.upper(), class_=f"method {method}"),
            element("code", path),
        ),
        element("p", operation.get("summary", "")),
    ]
    if operation.get("description"):
        parts.append(element("p", operation["description"], class_="soft"))
    if operation.get("deprecated"):
        parts.append(_deprecated(operation))
    parts.append(_access(operation))
    if operation.get("parameters"):
        rows = [_parameter(reader, reader.follow(parameter)) for parameter in operation["parameters"]]
        parts += [element("h4", "Parameters"), _table(("Name", "In", "Type", "What it is"), rows)]
    for media_type, content in reader.follow(operation.get("requestBody", {})).get("content", {}).items():
        rows = [[element("code", media_type), _type(reader, content.get("schema", {}))]]
        parts += [element("h4", "Body"), _table(("Media type", "Type"), rows)]
    rows = [_answer(reader, status, response) for status, response in operation.get("responses", {}).items()]
    parts += [element("h4", "Answers"), _table(("Status", "Type", "What it means"), rows)]
    parts += [
        element("h4", "Example"),
        element("pre", element("code", curl(reader, method, path, operation))),
    ]
    return element("section", *parts, id=_anchor(operation))


def _deprecated(operation: Node) -> Html:
    said = ["Deprecated since ", element("b", str(operation.get("x-deprecated-since", "now")))]
    if operation.get("x-sunset"):
        said += [", gone on ", element("b", str(operation["x-sunset"]))]
    url = str(operation.get("externalDocs", {}).get("url", ""))
    if LINK.fullmatch(url):
        said += [". ", element("a", "What to use instead", href=url, rel="noreferrer")]
    return element("p", *said, ".", class_="warn")


def _access(operation: Node) -> Html:
    ways = [name for way in operation.get("security", []) for name in way]
    if not ways:
        return element("p", "For everybody.", class_="soft")
    scopes = [Html(f" {element('code', scope)}") for scope in operation.get("x-scopes", [])]
    needs = [", who needs", *scopes] if scopes else []
    return element("p", f"For callers known by {' or '.join(ways)}", *needs, ".", class_="soft")


def _parameter(reader: _Reader, parameter: Node) -> list[str]:
    needed = " (required)" if parameter.get("required") else ""
    return [
        Html(element("code", parameter["name"]) + element("span", needed, class_="soft")),
        parameter["in"],
        _type(reader, parameter.get("schema", {})),
        parameter.get("description", ""),
    ]


def _answer(reader: _Reader, status: str, response: Node) -> list[str]:
    response = reader.follow(response)
    kinds = [
        Html(f"{element('code', media_type)} {_type(reader, content.get('schema', {}))}")
        for media_type, content in response.get("content", {}).items()
    ]
    return [element("b", status), Html("<br>".join(kinds)), response.get("description", "")]


def _schemas(reader: _Reader) -> Html:
    schemas = reader.components.get("schemas", {})
    parts = [element("h2", "Types", class_="tag")] if schemas else []
    for name, schema in schemas.items():
        inside = [element("h3", element("code", name)), element("p", str(schema.get("description", "")))]
        if schema.get("properties"):
            required = schema.get("required", [])
            rows = [
                [
                    Html(
                        element("code", member)
                        + element("span", " (required)" if member in required else "", class_="soft")
                    ),
                    _type(reader, kind),
                    str(kind.get("description", "")) if isinstance(kind, dict) else "",
                ]
                for member, kind in schema["properties"].items()
            ]
            inside.append(_table(("Member", "Type", "What it is"), rows))
        else:
            inside.append(element("p", _type(reader, schema)))
        parts.append(element("section", *inside, id=f"type-{name}"))
    return Html("".join(parts))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def _type(reader: _Reader, schema: Any, depth: int = 0) -> Html:
    """Return what a schema allows, in words, with links to the types that it refers to."""
    if not isinstance(schema, dict) or not schema or depth > TYPE_DEPTH_MAX:
        return element("span", "anything", class_="soft")
    found = REFERENCE.fullmatch(str(schema.get("$ref", "")))
    if found:
        return element("a", found[2], href=f"#type-{found[2]}")
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            return Html(" or ".join(_type(reader, part, depth + 1) for part in schema[keyword]))
    if "enum" in schema:
        return Html(", ".join(element("code", _json(value)) for value in schema["enum"]))
    if "const" in schema:
        return element("code", _json(schema["const"]))
    kinds = schema.get("type", "anything")
    said = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if "format" in schema:
        said = f"{said} ({schema['format']})"
    limits = [text.format(schema[key]) for key, text in LIMITS.items() if key in schema]
    text = html.escape(", ".join([said, *limits]))
    if "array" in (kinds if isinstance(kinds, list) else [kinds]) and schema.get("items"):
        text += f" of {_type(reader, schema['items'], depth + 1)}"
    return Html(text)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def curl(reader: _Reader, method: str, path: str, operation: Node) -> str:
    """Return a call of an operation with curl; what the caller fills in is in variables of the shell."""
    parameters = [reader.follow(parameter) for parameter in operation.get("parameters", [])]
    query = []
    for parameter in parameters:
        value = _text(example(reader, parameter.get("schema", {}), parameter["name"]))
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value, safe=""))
        elif parameter["in"] == "query" and parameter.get("required"):
            query.append(f"{quote(parameter['name'], safe='')}={quote(value, safe='')}")
    server = quote(reader.server, safe=":/@[]") if LINK.fullmatch(reader.server) else "$API"
    url = f"{server}{quote(path, safe='/@:%')}{'?' if query else ''}{'&'.join(query)}"
    parts = [
        "curl",
        *([] if method == "get" else ["--head"] if method == "head" else [f"-X {method.upper()}"]),
    ]
    parts += _credential(reader, operation)
    for media_type, content in reader.follow(operation.get("requestBody", {})).get("content", {}).items():
        body = example(reader, content.get("schema", {}), "")
        said = _json(body) if media_type.endswith("json") else "@file"
        parts += [f"-H {shlex.quote(f'Content-Type: {media_type}')}", f"--data-binary {shlex.quote(said)}"]
        break
    return " \\\n  ".join([" ".join(parts[:2]), *parts[2:], f'"{url}"'])


def _credential(reader: _Reader, operation: Node) -> list[str]:
    """Return how curl shows who calls, in the first way that the operation takes."""
    ways = [name for way in operation.get("security", []) for name in way]
    scheme = reader.components.get("securitySchemes", {}).get(ways[0], {}) if ways else {}
    if scheme.get("type") == "http":
        return ['-H "Authorization: Bearer $TOKEN"']
    if scheme.get("type") == "apiKey" and HEADER_NAME.fullmatch(str(scheme.get("name", ""))):
        return [f'-H "{scheme["name"]}: $API_KEY"']
    if scheme.get("type") == "mutualTLS":
        return ["--cert caller.pem --key caller.key"]
    return []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def example(reader: _Reader, schema: Any, name: str, depth: int = 0) -> Any:
    """Return a value of a schema: what the schema itself gives, else the plainest one."""
    if not isinstance(schema, dict) or depth > EXAMPLE_DEPTH_MAX:
        return {}
    schema = reader.follow(schema)
    for keyword in ("example", "const", "default"):
        if keyword in schema:
            return schema[keyword]
    for keyword in ("examples", "enum"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return schema[keyword][0]
    for keyword in ("anyOf", "oneOf", "allOf"):
        if schema.get(keyword):
            return example(reader, schema[keyword][0], name, depth + 1)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else next(iter(kinds), "string")
    if kind == "object":
        members = schema.get("properties", {})
        wanted = schema.get("required", list(members))
        return {
            member: example(reader, members.get(member, {}), member, depth + 1)
            for member in members
            if member in wanted
        }
    if kind == "array":
        return [example(reader, schema.get("items", {}), name, depth + 1)]
    if kind in {"integer", "number"}:
        return schema.get("minimum", 1)
    if kind in {"boolean", "null"}:
        return True if kind == "boolean" else None
    return FORMATS.get(str(schema.get("format", "")), name or "text")
