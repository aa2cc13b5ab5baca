"""The OpenAPI 3.1 document that the gateway publishes for a version, made of its routes.

Paths are the gateway's, operations are the upstreams', and what the gateway adds stands with them: who may
call, with which scopes, what else is answered, and what is deprecated. Of the upstreams' components only
those are kept that something refers to; names that two documents use for different things are told apart.
"""

from __future__ import annotations

import re
from typing import Any, Final

from routing.gateway import own_api
from routing.gateway.documents import COMPONENT, Document, DocumentError, Documents, Node, Operation, parse
from routing.gateway.routes_file import PARAMETER, Authorizer, Route, Routes, parameters

VERSION: Final = re.compile(r"/(v[1-9][0-9]{0,2})(?=/|$)")
PROBLEM_JSON: Final = "application/problem+json"
PROBLEM_NAME: Final = "Problem"
PROBLEM: Final[Node] = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "What is wrong with the request, and where.",
            "maxItems": 20,
            "items": {
                "type": "object",
                "required": ["where", "problem"],
                "properties": {"where": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
SAID: Final = {
    "400": "The request is not what the operation takes; `errors` says where.",
    "401": "The caller is not known.",
    "403": "The caller may not do this: a scope is missing, or it belongs to another tenant.",
    "410": "This was deprecated, and is gone.",
    "413": "The body is too large.",
    "415": "The body is of a type that this operation does not take.",
    "429": "More than the usage plan allows.",
    "431": "Path, query and headers are too large.",
    "502": "The upstream did not answer as it should.",
    "503": "The upstream cannot be reached, or has too much to do.",
    "504": "The upstream did not answer in time.",
}
UPSTREAM_MAY_SAY: Final = frozenset({"400", "403"})
"""Answers that an upstream describes better, where it does."""
NEVER_PASSED_ON: Final = frozenset({"401"})
"""An upstream's 401 is for callers that are not the gateway."""
NOT_COPIED: Final = frozenset(
    {"operationId", "tags", "parameters", "responses", "security", "servers", "deprecated"}
)
AGAIN: Final[Node] = {"description": "In how many seconds to try again.", "schema": {"type": "integer"}}
LIMITS: Final[Node] = {"description": "What is left of the usage plan.", "schema": {"type": "string"}}
HEADERS: Final[dict[str, Node]] = {
    "401": {"WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}},
    "429": {"Retry-After": AGAIN, "RateLimit": LIMITS, "RateLimit-Policy": LIMITS},
    "503": {"Retry-After": AGAIN},
}
TEXT_NOT_SCHEMA: Final = frozenset({"example", "examples", "default", "const", "enum"})
MAPS: Final = frozenset(
    {"properties", "patternProperties", "dependentSchemas", "$defs", "responses", "headers", "content",
     "links", "callbacks", "encoding", "schemas"}
)  # fmt: skip
"""Members whose own members have names that are not keywords."""


def version_of(route: Route, default: str) -> str:
    """Return the version that a route belongs to: its own, its path's, or the default one."""
    found = VERSION.match(route.path)
    return route.version or (found[1] if found else default)


def versions(routes: Routes) -> list[str]:
    """Return the versions that have routes, in order."""
    found = {version_of(route, routes.default_version) for route in routes.routes}
    return sorted(found, key=lambda version: int(version[1:]))


def published(routes: Routes, documents: Documents, version: str, *, server: str, title: str) -> Node:
    """Return the document of a version; raises `DocumentError`.

    Of routes that differ in headers only, the first is described. Routes of the gateway itself are described
    by `own_api`, and left out where that has none.
    """
    made = _Published(routes)
    for route in routes.routes:
        if version_of(route, routes.default_version) == version:
            operation = _operation_of(route, routes, documents)
            if operation is not None:
                made.add(route, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "servers": [{"url": server}],
        "tags": [made.tags[name] for name in sorted(made.tags)],
        "paths": made.paths,
        "components": {kind: dict(sorted(named.items())) for kind, named in sorted(made.components.items())},
    }


def _operation_of(route: Route, routes: Routes, documents: Documents) -> Operation | None:
    """Return what describes a route: its document, the gateway's own, or nothing but its path."""
    if routes.upstreams[route.upstream].kind == "internal":
        return own_api.document().operations.get(own_api.operation_of(route))
    if route.operation:
        return documents.operation(route.operation)
    bare: Node = {
        "operationId": route.name,
        "responses": {"default": {"description": "What the upstream answers."}},
    }
    if route.method in {"POST", "PUT", "PATCH"} and route.body_bytes_max:
        bare["requestBody"] = {"content": {"*/*": {}}}
    content = {"openapi": "3.1.0", "paths": {"/": {route.method.lower(): bare}}}
    return parse(route.upstream, content).operations[route.name]


class _Published:
    """A document while it is made."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._names: set[str] = set()
        self._origins: dict[tuple[str, str], tuple[str, Node]] = {}
        """By (kind, name in here): the document and the node there."""
        self.paths: dict[str, Node] = {}
        self.tags: dict[str, Node] = {}
        self.components: dict[str, Node] = {"schemas": {PROBLEM_NAME: PROBLEM}}

    def add(self, route: Route, operation: Operation) -> None:
        """Add one route."""
        path = PARAMETER.sub(r"{\1}", route.path)
        item = self.paths.setdefault(path, {})
        if route.method.lower() in item:
            return
        self._tag(route, operation.document)
        source = {
            key: value
            for key, value in operation.content.items()
            if key not in NOT_COPIED and not key.startswith("x-headworks-")
        }
        content: Node = {"operationId": self._name(route, operation), "tags": [route.upstream]}
        content |= self._copied(operation.document, source)
        if found := self._parameters(route, operation):
            content["parameters"] = found
        content["responses"] = self._responses(route, operation)
        content |= self._access(route)
        content |= _deprecation(route)
        item[route.method.lower()] = content

    def _name(self, route: Route, operation: Operation) -> str:
        """Return an operationId that no other operation in here has."""
        for name in (operation.name, f"{operation.document.name}_{operation.name}", route.name):
            if name not in self._names:
                self._names.add(name)
                return name
        raise DocumentError(f"route {route.name}: no operationId is left for it")

    def _tag(self, route: Route, document: Document) -> None:
        info = document.content.get("info", {})
        said = info.get("description") or info.get("title")
        self.tags.setdefault(
            route.upstream, {"name": route.upstream, **({"description": said} if said else {})}
        )

    def _parameters(self, route: Route, operation: Operation) -> list[Node]:
        """Return the parameters of the path as it is here, then the others that the upstream takes."""
        described = {
            parameter["name"]: parameter for parameter in operation.parameters if parameter["in"] == "path"
        }
        found: list[Node] = []
        for name in parameters(route.path):
            bare = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            found.append(self._copied(operation.document, described.get(name, bare)))
        for parameter in operation.parameters:
            own = parameter["in"] == "header" and parameter["name"].lower().startswith("x-headworks-")
            if parameter["in"] != "path" and not own:
                found.append(self._copied(operation.document, parameter))
        if takes_idempotency_key(route, operation, self._kind(route)):
            found.append(IDEMPOTENCY_KEY)
        return found

    def _responses(self, route: Route, operation: Operation) -> Node:
        """Return what the upstream answers, and what the gateway answers in its place."""
        theirs = operation.content.get("responses", {})
        ours = _refusals(route, operation, internal=self._kind(route) == "internal")
        found: Node = {
            status: self._copied(operation.document, response)
            for status, response in theirs.items()
            if status not in ours and status not in NEVER_PASSED_ON
        }
        for status in ours:
            better = operation.document.resolve(theirs.get(status, {})) if status in UPSTREAM_MAY_SAY else {}
            found[status] = self._problem(status, better.get("description", ""))
        if route.cache is not None:
            found.setdefault("304", {"description": "Not changed since the ETag that was given."})
        return dict(sorted(found.items()))

    def _problem(self, status: str, said: str) -> Node:
        """Return the answer that the gateway gives with a status, in an upstream's words if it has some."""
        response = {
            "description": said or SAID[status],
            **({"headers": HEADERS[status]} if status in HEADERS else {}),
            "content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{PROBLEM_NAME}"}}},
        }
        if said:
            return response
        name = f"{PROBLEM_NAME}{status}"
        self.components.setdefault("responses", {})[name] = response
        return {"$ref": f"#/components/responses/{name}"}

    def _kind(self, route: Route) -> str:
        return self._routes.upstreams[route.upstream].kind

    def _access(self, route: Route) -> Node:
        """Return who may call a route, and with which scopes."""
        if route.public:
            return {"security": []}
        schemes = self.components.setdefault("securitySchemes", {})
        for name in route.authorizers:
            schemes[name] = _scheme(self._routes.authorizers[name])
        return {
            "security": [{name: sorted(route.scopes)} for name in route.authorizers],
            **({"x-scopes": sorted(route.scopes)} if route.scopes else {}),
        }

    def _copied(self, document: Document, node: Any, *, names: bool = False) -> Any:
        """Return a copy of a node with its references led to components in here, which are made as needed."""
        if isinstance(node, list):
            return [self._copied(document, part) for part in node]
        if not isinstance(node, dict):
            return node
        copy: Node = {}
        for key, value in node.items():
            if names:
                copy[key] = self._copied(document, value)
            elif key == "$ref" and isinstance(value, str):
                copy[key] = self._component(document, value)
            elif key == "mapping" and isinstance(value, dict):
                copy[key] = {name: self._mapped(document, target) for name, target in value.items()}
            elif key in TEXT_NOT_SCHEMA:
                copy[key] = value
            else:
                copy[key] = self._copied(document, value, names=key in MAPS)
        return copy

    def _mapped(self, document: Document, target: Any) -> Any:
        """Return the target of a discriminator, which may be a reference."""
        if isinstance(target, str) and COMPONENT.fullmatch(target):
            return self._component(document, target)
        return target

    def _component(self, document: Document, reference: str) -> str:
        """Return the reference in here of a component of a document, which is copied the first time."""
        node = document.component(reference)
        found = COMPONENT.fullmatch(reference)
        assert found is not None
        kind, wanted = found[1], found[2]
        for name in _candidates(document.name, wanted):
            origin = self._origins.get((kind, name))
            if origin is not None and (origin[1] is node or (origin[1] == node and "$ref" not in repr(node))):
                return f"#/components/{kind}/{name}"
            if origin is None and name not in self.components.get(kind, {}):
                self._origins[kind, name] = (document.name, node)
                self.components.setdefault(kind, {})[name] = {}
                self.components[kind][name] = self._copied(document, node)
                return f"#/components/{kind}/{name}"
        raise DocumentError(f"document {document.name}: no name is left for {reference}")


NAMES_TRIED_MAX: Final = 100
IDEMPOTENCY_KEY: Final[Node] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes a call one that may be tried again when an upstream fails.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}


def takes_idempotency_key(route: Route, operation: Operation, kind: str) -> bool:
    """Return whether a route takes an Idempotency-Key of which its operation says nothing."""
    named = {parameter["name"].lower() for parameter in operation.parameters if parameter["in"] == "header"}
    retried = route.method in {"POST", "PATCH"} and route.retries.attempts_max > 1
    return retried and kind == "http" and "idempotency-key" not in named


def _candidates(document: str, wanted: str) -> list[str]:
    """Return the names that a component may get, best first."""
    return [wanted, f"{document}_{wanted}", *(f"{document}_{wanted}_{n}" for n in range(2, NAMES_TRIED_MAX))]


def _refusals(route: Route, operation: Operation, *, internal: bool) -> list[str]:
    """Return the statuses that the gateway itself answers on a route."""
    body = "requestBody" in operation.content
    found = ["400", "431"] if operation.parameters or body else ["431"]
    if not route.public:
        found += ["401", "403", "429"]
    if route.deprecation is not None and route.deprecation.sunset:
        found.append("410")
    if body:
        found += ["413", "415"]
    return found if internal else [*found, "502", "503", "504"]


def _scheme(authorizer: Authorizer) -> Node:
    """Return how an authorizer wants to be shown who calls."""
    if authorizer.kind == "jwt":
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    if authorizer.kind == "certificate":
        return {"type": "mutualTLS", "description": "A client certificate."}
    if authorizer.kind == "api_key":
        return {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    if authorizer.header.lower() == "authorization":
        return {"type": "http", "scheme": "bearer"}
    return {"type": "apiKey", "in": "header", "name": authorizer.header}


def _deprecation(route: Route) -> Node:
    if route.deprecation is None:
        return {}
    said = route.deprecation
    return {
        "deprecated": True,
        "x-deprecated-since": said.since,
        **({"x-sunset": said.sunset} if said.sunset else {}),
        **({"externalDocs": {"description": "What to use instead.", "url": said.link}} if said.link else {}),
    }
