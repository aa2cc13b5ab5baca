"""What the gateway does with a request, as data: routes, upstreams, authorizers, CORS policies, documents.

The file is read again when it changes, and taken whole or not at all: a bad one keeps the last good one.
Missing means closed: a route without authorizers that is not `public` is an error, not an open door.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from routing.tenancy.principal import SCOPE
from runtime import settings_file
from runtime.settings_file import Section, Wrong

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Deadline = Annotated[float, msgspec.Meta(ge=0.01, le=3600)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
HashLoad = Annotated[float, msgspec.Meta(ge=0, le=100)]
Body = Annotated[int, msgspec.Meta(ge=0, le=64 << 20)]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
PARAMETER: Final = re.compile(r"\{([a-z][a-z0-9_]{0,31})(\.\.\.)?\}")
"""`{device}` is one segment of a path, `{rest...}`, which ends a path, is what is left of it."""


class HeaderRules(Section, frozen=True):
    """What happens to headers on their way: `remove` first, then `set` (replaces), then `add`."""

    set: dict[str, str] = msgspec.field(default_factory=dict)
    add: dict[str, str] = msgspec.field(default_factory=dict)
    remove: list[str] = msgspec.field(default_factory=list)


class Cache(Section, frozen=True):
    """How long an answer to GET may be given again; `vary` are request headers that it depends on.

    Cached apart for each tenant and credential, unless the route is public.
    """

    ttl_s: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)]
    vary: list[str] = msgspec.field(default_factory=list)


class Deprecation(Section, frozen=True):
    """Dates from which a route is deprecated and gone; `link` explains (RFC 9745, RFC 8594)."""

    since: str
    sunset: str = ""
    link: str = ""


class Retries(Section, frozen=True):
    """How often a request may be tried: an idempotent one, one with an Idempotency-Key, one never sent.

    Without `keyed` the key is not enough: the upstream would do the same one twice.
    """

    keyed: bool = True
    attempts_max: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    try_timeout_s: Deadline = 5.0
    statuses: list[int] = msgspec.field(default_factory=lambda: [502, 503, 504])
    backoff_base_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.025
    backoff_max_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.25
    hedge_after_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0


class Route(Section, frozen=True):
    """One route. `version` is empty where the first segment of the path says it (`/v1/...`)."""

    name: Name
    method: Method
    path: Text
    upstream: Name
    version: Annotated[str, msgspec.Meta(pattern=r"^(v[1-9][0-9]{0,2})?$")] = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    upstream_path: str = ""
    operation: str = ""
    public: bool = False
    authorizers: list[Name] = msgspec.field(default_factory=list)
    scopes: list[str] = msgspec.field(default_factory=list)
    tenant: str = "tenant"
    timeout_s: Deadline = 15.0
    retries: Retries = Retries()
    body_bytes_max: Body = 1 << 20
    request_headers: HeaderRules = HeaderRules()
    response_headers: HeaderRules = HeaderRules()
    cors: str = ""
    cache: Cache | None = None
    deprecation: Deprecation | None = None
    hash_by: str = ""


class Endpoint(Section, frozen=True):
    """A server that a file names. `priority` 0 is used first; the next is for fail-over."""

    address: Text
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    zone: str = ""
    priority: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0


class Discovery(Section, frozen=True):
    """Where endpoints come from: `static` has them here, `file` in a TOML file of [[endpoints]]."""

    kind: Literal["static", "file", "dns", "cloud_map"]
    endpoints: list[Endpoint] = msgspec.field(default_factory=list)
    file: str = ""
    name: str = ""
    record: Literal["A", "AAAA", "SRV"] = "A"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    nameserver: str = ""
    namespace: str = ""
    service: str = ""
    region: str = ""
    endpoint: str = ""
    poll_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 5.0
    deadline_s: Deadline = 2.0


class Health(Section, frozen=True):
    """An active check: a GET of `path` that wants a 2xx, or, where `path` is empty, a TCP connection."""

    path: str = "/healthz"
    interval_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 2.0
    timeout_s: Deadline = 1.0
    healthy_after: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    unhealthy_after: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2


class Ejection(Section, frozen=True):
    """Passive: who fails `failures_max` times in a row is left out, for longer each time.

    Never more than `share_max` of the endpoints are.
    """

    failures_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    base_s: Deadline = 5.0
    max_s: Deadline = 300.0
    share_max: Share = 0.5


class Breaking(Section, frozen=True):
    """The breaker of the whole upstream, and how many requests may be under way at once."""

    failures_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 20
    open_s: Deadline = 1.0
    open_s_max: Deadline = 30.0
    requests_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1024


class RetryBudget(Section, frozen=True):
    """Retries and hedges may be `share` of the requests of the last `window_s`, and `min_per_s` always."""

    share: Share = 0.2
    min_per_s: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 3.0
    window_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 10.0


class Upstream(Section, frozen=True):
    """Who answers. `http`: servers of `discovery`; `lambda`: `function`; `kinesis`: records into `stream`.

    `internal` is served by the gateway itself. `local_zone` is preferred while a share of `zone_share` of it
    is healthy; a priority is left for the next while less than `failover_share` of it is. `hash_load_max` is
    how many times its share a server may have with `consistent_hash`; 0 is no limit. `certificate` and `key`
    are the gateway's own towards servers that ask for one.
    """

    kind: Literal["http", "lambda", "kinesis", "internal"] = "http"
    discovery: Discovery | None = None
    balancing: Literal["weighted_round_robin", "least_request", "consistent_hash"] = "least_request"
    local_zone: str = ""
    zone_share: Share = 0.7
    failover_share: Share = 0.5
    hash_load_max: HashLoad = 0.0
    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    server_name: str = ""
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 256
    health: Health | None = None
    ejection: Ejection = Ejection()
    breaker: Breaking = Breaking()
    retry_budget: RetryBudget = RetryBudget()
    function: str = ""
    stream: str = ""
    region: str = ""
    endpoint: str = ""


class Authorizer(Section, frozen=True):
    """How a caller proves who it is.

    Keys of a JWKS are read again every `refresh_s`; `url`, `header` and `cache_s` are for `custom`, and
    `signing_keys_file` is for `sigv4`. `scopes` are what a device with a certificate has. Only with
    `operators` may a credential be for every tenant, `*`.
    """

    kind: Literal["jwt", "api_key", "certificate", "custom", "sigv4"]
    signing_keys_file: str = ""
    jwks_file: str = ""
    jwks_url: str = ""
    issuer: str = ""
    audience: str = ""
    leeway_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 30.0
    tenant_claim: Text = "tenant"
    name_claim: Text = "sub"
    scope_claim: Text = "scope"
    plan_claim: Text = "plan"
    refresh_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    scopes: list[str] = msgspec.field(default_factory=list)
    url: str = ""
    header: str = "Authorization"
    timeout_s: Deadline = 2.0
    cache_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 60.0
    cache_entries_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    operators: bool = False


class Cors(Section, frozen=True):
    """Which pages of other origins may call (Fetch standard). `*` never goes with `credentials`."""

    origins: list[str]
    headers: list[str] = msgspec.field(default_factory=list)
    expose: list[str] = msgspec.field(default_factory=list)
    credentials: bool = False
    max_age_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 600


class SocketRoute(Section, frozen=True):
    """Where messages go: `key` is $connect, $disconnect, $default, or a value of the selection."""

    key: Text
    upstream: Name
    path: Text
    timeout_s: Deadline = 10.0


class SocketApi(Section, frozen=True):
    """A WebSocket API as AWS API Gateway has them. `select` is the member that names a message's route.

    `a.b` selects a member of a member. `origins` are the pages that may connect; with none, those that show
    no client certificate. A connection ends after `idle_s` without a message, and after `duration_s` anyhow.
    `push_bytes_max` may wait for a client that does not read, and nothing of it longer than `unread_s`.
    """

    path: Text
    authorizers: list[Name]
    routes: list[SocketRoute]
    scopes: list[str] = msgspec.field(default_factory=list)
    origins: list[str] = msgspec.field(default_factory=list)
    select: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}$")] = (
        "action"
    )
    message_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 128 * 1024
    messages_per_s: Annotated[float, msgspec.Meta(gt=0, le=100_000)] = 50.0
    ping_s: Deadline = 30.0
    idle_s: Deadline = 600.0
    duration_s: Annotated[float, msgspec.Meta(ge=0.1, le=604_800)] = 7200.0
    unread_s: Deadline = 30.0
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    connections_per_tenant_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    push_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=64 << 20)] = 1 << 20


class Routes(Section, frozen=True):
    """All of it. `documents` are OpenAPI files by name; an `operation` is `document#operationId`."""

    routes: list[Route] = msgspec.field(default_factory=list)
    upstreams: dict[str, Upstream] = msgspec.field(default_factory=dict)
    authorizers: dict[str, Authorizer] = msgspec.field(default_factory=dict)
    cors: dict[str, Cors] = msgspec.field(default_factory=dict)
    documents: dict[str, str] = msgspec.field(default_factory=dict)
    sockets: dict[str, SocketApi] = msgspec.field(default_factory=dict)
    default_version: Annotated[str, msgspec.Meta(pattern=r"^v[1-9][0-9]{0,2}$")] = "v1"


def load(path: Path) -> Routes:
    """Read and check a file; raises `SettingsError`."""
    return settings_file.load(path, Routes, check=check)


def parameters(template: str) -> list[str]:
    """Return the names of a path's parameters in order."""
    return [name for name, _ in PARAMETER.findall(template)]


def check(routes: Routes, wrong: Wrong) -> None:
    """Check what no single field can know."""
    taken: dict[str, str] = {}
    for position, route in enumerate(routes.routes):
        key = f"routes[{position}]"
        if route.name in taken:
            raise wrong(f"{key}.name", f"{route.name} is {taken[route.name]} already")
        taken[route.name] = key
        _check_route(key, route, routes, wrong)
    for name, upstream in routes.upstreams.items():
        if upstream.kind == "http" and upstream.discovery is None:
            raise wrong(f"upstreams.{name}", "an http upstream needs a discovery")
        if upstream.kind == "lambda" and not (upstream.function and upstream.region):
            raise wrong(f"upstreams.{name}", "lambda needs function and region")
        if upstream.kind == "kinesis" and not (upstream.stream and upstream.region):
            raise wrong(f"upstreams.{name}", "kinesis needs stream and region")
        if 0 < upstream.hash_load_max < 1:
            raise wrong(
                f"upstreams.{name}.hash_load_max", "below 1 nobody could have its share; 0 is no limit"
            )
        if bool(upstream.certificate) != bool(upstream.key):
            raise wrong(f"upstreams.{name}", "certificate and key go together")
    for name, authorizer in routes.authorizers.items():
        _check_authorizer(f"authorizers.{name}", authorizer, wrong)
    for name, cors in routes.cors.items():
        if cors.credentials and "*" in cors.origins:
            raise wrong(f"cors.{name}", "credentials and every origin do not go together")
    for name, socket in routes.sockets.items():
        _check_access(f"sockets.{name}", socket.authorizers, socket.scopes, routes, wrong)
        _check_socket(f"sockets.{name}", socket, routes, wrong)


def _check_route(key: str, route: Route, routes: Routes, wrong: Wrong) -> None:
    if not route.path.startswith("/"):
        raise wrong(f"{key}.path", "a path begins with /")
    names = parameters(route.path)
    if len(names) != len(set(names)) or "{" in PARAMETER.sub("", route.path):
        raise wrong(f"{key}.path", "parameters are {name}, each once, and {name...} at the end")
    if foreign := set(parameters(route.upstream_path)) - set(names):
        raise wrong(f"{key}.upstream_path", f"the path has no parameter {min(foreign)}")
    if route.upstream not in routes.upstreams:
        raise wrong(f"{key}.upstream", f"there is no upstream {route.upstream}")
    if route.public and (route.authorizers or route.scopes):
        raise wrong(f"{key}.public", "a public route asks for no authorizers and no scopes")
    if not route.public:
        _check_access(key, route.authorizers, route.scopes, routes, wrong)
    if route.cors and route.cors not in routes.cors:
        raise wrong(f"{key}.cors", f"there is no [cors.{route.cors}]")
    if route.cache is not None and route.method != "GET":
        raise wrong(f"{key}.cache", "only answers to GET are cached")
    document, _, operation = route.operation.partition("#")
    internal = routes.upstreams[route.upstream].kind == "internal"
    if route.operation and not internal and not (operation and document in routes.documents):
        raise wrong(f"{key}.operation", "write document#operationId, with the document in [documents]")


def _check_socket(key: str, socket: SocketApi, routes: Routes, wrong: Wrong) -> None:
    seen: set[str] = set()
    for entry in socket.routes:
        if entry.upstream not in routes.upstreams:
            raise wrong(key, f"there is no upstream {entry.upstream}")
        if entry.key in seen:
            raise wrong(key, f"there are two routes {entry.key}")
        if entry.key.startswith("$") and entry.key not in {"$connect", "$disconnect", "$default"}:
            raise wrong(key, f"{entry.key} is none of $connect, $disconnect, $default")
        if not entry.path.startswith("/"):
            raise wrong(key, "a path begins with /")
        seen.add(entry.key)


def _check_authorizer(key: str, authorizer: Authorizer, wrong: Wrong) -> None:
    if authorizer.kind == "jwt" and bool(authorizer.jwks_file) == bool(authorizer.jwks_url):
        raise wrong(key, "a jwt authorizer needs jwks_file or jwks_url, and not both")
    if authorizer.kind == "custom" and not authorizer.url.startswith(("http://", "https://")):
        raise wrong(f"{key}.url", "a custom authorizer needs an http or https url to ask")
    if authorizer.kind == "sigv4" and not authorizer.signing_keys_file:
        raise wrong(key, "sigv4 needs signing_keys_file")
    _check_scopes(key, authorizer.scopes, wrong)


def _check_access(key: str, authorizers: list[str], scopes: list[str], routes: Routes, wrong: Wrong) -> None:
    if not authorizers:
        raise wrong(f"{key}.authorizers", "nobody could call: name authorizers, or say public = true")
    for name in authorizers:
        if name not in routes.authorizers:
            raise wrong(f"{key}.authorizers", f"there is no [authorizers.{name}]")
    _check_scopes(key, scopes, wrong)


def _check_scopes(key: str, scopes: list[str], wrong: Wrong) -> None:
    for scope in scopes:
        if SCOPE.fullmatch(scope) is None:
            raise wrong(f"{key}.scopes", f"{scope!r} is not resource:action")
