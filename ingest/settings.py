"""The settings of a node: TOML, decoded into frozen structs; what is not known is an error.

Defaults are in the structs and in docs/guides/settings.md. Times end in `_s` and are seconds, sizes end
in `_bytes` or `bytes_max` and are bytes. Secrets stand in files that settings name, never here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from routing.limits.plan import Plan, Rate, check_plan
from runtime import settings_file
from runtime.settings_file import Section, Wrong, split_bind

MIB: Final = 1 << 20
INT_MAX: Final = 1 << 60
LONG_S: Final = 315_360_000.0
"""Ten years: what is longer is infinity, or a mistake."""

Count = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]
Payload = Annotated[int, msgspec.Meta(ge=1, le=64 * MIB)]
"""What is stored as one blob of SQLite with others, which is below 10^9 bytes."""
Body = Annotated[int, msgspec.Meta(ge=1, le=256 * MIB)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=LONG_S)]
Deadline = Annotated[float, msgspec.Meta(ge=0.1, le=LONG_S)]
"""A wait that somebody must be able to meet."""
Period = Annotated[float, msgspec.Meta(ge=1, le=LONG_S)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
StreamName = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~:@=-]{1,128}(/[A-Za-z0-9._~:@=-]{1,128}){0,15}$")
]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Node(Section, frozen=True):
    """The node as a whole. `workers` 0 means one a core."""

    name: Name = "headworks"
    role: Literal["core"] = "core"
    data_dir: Text = "var"
    workers: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    registration: Literal["open", "registered"] = "open"
    trust_domain: str = ""
    drain_deadline_s: Deadline = 20.0


class Listener(Section, frozen=True):
    """One port. `http` also carries WebSocket, and MQTT over WebSocket on /mqtt."""

    protocol: Literal["mqtt", "http"]
    bind: str
    tls: Literal["off", "server", "mutual"] = "mutual"
    auth: list[Literal["certificate", "jwt", "api_key", "topic"]] = msgspec.field(
        default_factory=lambda: ["certificate"]  # type: ignore[arg-type,unused-ignore]
    )
    allow_plaintext: bool = False


class Tls(Section, frozen=True):
    """Certificate files, reloaded together when one changes or on SIGHUP."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    crl: str = ""
    handshake_deadline_s: Deadline = 15.0
    handshakes_max: Positive = 1000
    reload_poll_s: Deadline = 0.5


class Accept(Section, frozen=True):
    """When a worker takes new connections; the rest wait in the kernel's backlog."""

    rate_per_s: Annotated[float, msgspec.Meta(ge=0.1, le=1e6)] = 2000.0
    loop_lag_max_s: Annotated[float, msgspec.Meta(ge=0.01, le=LONG_S)] = 0.5
    connections_max: Positive = 18_000
    backlog: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 4096


class Mqtt(Section, frozen=True):
    """Limits of MQTT sessions."""

    packet_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=268_435_455)] = MIB
    connect_bytes_max: Annotated[int, msgspec.Meta(ge=64, le=268_435_455)] = 65_536
    connect_deadline_s: Deadline = 15.0
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1024
    topic_alias_maximum: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 32
    topic_levels_max: Annotated[int, msgspec.Meta(ge=4, le=65_535)] = 20
    topic_bytes_max: Annotated[int, msgspec.Meta(ge=8, le=65_535)] = 512
    client_id_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 256
    user_properties_max: Count = 32
    keep_alive_s_max: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 3600
    session_expiry_s_max: Annotated[int, msgspec.Meta(ge=0, le=4_294_967_295)] = 86_400
    routes_max: Positive = 1024
    wills_max: Count = 10_000
    takeover_deadline_s: Deadline = 10.0
    close_deadline_s: Deadline = 5.0
    linger_s: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Http(Section, frozen=True):
    """Limits of HTTP requests and WebSockets."""

    body_bytes_max: Body = 4 * MIB
    inflated_bytes_max: Body = 16 * MIB
    header_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=MIB)] = 16_384
    request_deadline_s: Deadline = 30.0
    keep_alive_s: Deadline = 75.0
    idempotency_s: Period = 86_400.0
    websocket_message_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=256 * MIB)] = MIB
    websocket_unacknowledged_max: Positive = 4096
    websocket_ping_s: Period = 30.0


class SpoolSection(Section, frozen=True):
    """What a worker's spool may hold; `full` says what MQTT clients meet when it is full."""

    bytes_max: Positive = 4 << 30
    age_max_s: Period = 7 * 86_400.0
    group_bytes_max: Payload = MIB
    full: Literal["pause", "refuse"] = "pause"
    dead_letters_max: Count = 100_000
    dead_letters_bytes_max: Count = 1 << 30
    refused_kept_per_s: Rate = 100.0
    refused_kept_bytes_max: Count = 65_536


RECORD_BYTES_MAX: Final = MIB - 1024
"""The service takes 1 MiB of a record with its partition key, which has up to 256 characters."""


class Sink(Section, frozen=True):
    """Where records go."""

    kind: Literal["kinesis", "local", "null"] = "local"
    stream: str = ""
    region: str = ""
    endpoint: str = ""
    local_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=INT_MAX)] = 4 << 30
    record_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=RECORD_BYTES_MAX)] = 256 * 1024
    pending_bytes_max: Positive = 32 * MIB
    call_deadline_s: Deadline = 10.0
    concurrency_max: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    linger_s: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.02
    shard_bytes_per_s: Positive = 1_000_000
    shard_records_per_s: Positive = 1000


class Stream(Section, frozen=True):
    """What a stream takes; the rule holds for `name` and everything below it."""

    name: StreamName
    kind: Literal["telemetry", "raw"] = "telemetry"
    payload_bytes_max: Payload = 256 * 1024


class Jwt(Section, frozen=True):
    """JSON Web Tokens as credentials; RS256, ES256 and EdDSA."""

    jwks_file: str = ""
    jwks_url: str = ""
    issuer: str = ""
    audience: str = ""
    leeway_s: Seconds = 30.0
    tenant_claim: Text = "tenant"
    device_claim: Text = "device"
    gateway_claim: Text = "gateway"
    refresh_s: Period = 300.0


class Memory(Section, frozen=True):
    """How much room the tables have that workers share."""

    tenants_max: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 1024
    devices_max: Rows = 200_000
    sessions_max: Rows = 200_000
    idempotency_keys_max: Rows = 100_000


class Admin(Section, frozen=True):
    """Where /metrics, /healthz, /readyz and /status are served."""

    bind: str = "127.0.0.1:9090"


class Log(Section, frozen=True):
    """The log, on standard error. `auto` is for people on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(Section, frozen=True):
    """All of it."""

    node: Node = Node()
    listeners: list[Listener] = msgspec.field(default_factory=list)
    tls: Tls = Tls()
    accept: Accept = Accept()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    spool: SpoolSection = SpoolSection()
    sink: Sink = Sink()
    limits: dict[str, Plan] = msgspec.field(default_factory=dict)
    streams: list[Stream] = msgspec.field(default_factory=list)
    jwt: Jwt = Jwt()
    memory: Memory = Memory()
    admin: Admin = Admin()
    log: Log = Log()


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check the settings; raises `SettingsError`."""
    return settings_file.load(path, Settings, check=check, overrides=overrides)


def check(settings: Settings, wrong: Wrong) -> None:
    """Check what no single field can know."""
    _check_binds(settings, wrong)
    for position, listener in enumerate(settings.listeners):
        _check_listener(f"listeners[{position}]", listener, settings, wrong)
    if settings.sink.kind == "kinesis" and not (settings.sink.stream and settings.sink.region):
        raise wrong("sink.kind", "kinesis needs sink.stream and sink.region")
    for name, plan in settings.limits.items():
        check_plan(f"limits.{name}", plan, wrong)
    names = [stream.name for stream in settings.streams]
    for position, stream in enumerate(names):
        if stream in names[:position]:
            raise wrong(f"streams[{position}].name", f"{stream} is there twice")


def _check_binds(settings: Settings, wrong: Wrong) -> None:
    if not settings.listeners:
        raise wrong("listeners", "there is no [[listeners]] entry, so nobody could connect")
    taken: dict[tuple[str, int], str] = {}
    entries = [(f"listeners[{position}].bind", each.bind) for position, each in enumerate(settings.listeners)]
    for key, bind in [*entries, ("admin.bind", settings.admin.bind)]:
        try:
            address = split_bind(bind)
        except ValueError as error:
            raise wrong(key, str(error)) from error
        if address[1] and address in taken:
            raise wrong(key, f"{taken[address]} is the same, and peers would reach either")
        taken[address] = key


def _check_listener(key: str, listener: Listener, settings: Settings, wrong: Wrong) -> None:
    host, _ = split_bind(listener.bind)
    loopback = ipaddress.ip_address(host).is_loopback
    if listener.tls == "off" and not loopback and not listener.allow_plaintext:
        why = "plaintext outside the loopback; use tls, or say allow_plaintext = true"
        raise wrong(f"{key}.tls", why)
    if "topic" in listener.auth and not loopback:
        raise wrong(f"{key}.auth", '"topic" proves nothing, so it is for the loopback only')
    if "certificate" in listener.auth and listener.tls != "mutual":
        raise wrong(f"{key}.auth", 'certificates need tls = "mutual"')
    if not listener.auth:
        raise wrong(f"{key}.auth", "nobody could connect: name at least one credential")
    if listener.protocol == "mqtt" and "api_key" in listener.auth:
        raise wrong(f"{key}.auth", "API keys are for http listeners")
    if "jwt" in listener.auth and not (settings.jwt.jwks_file or settings.jwt.jwks_url):
        raise wrong(f"{key}.auth", "tokens need jwt.jwks_file or jwt.jwks_url")
    if listener.tls != "off" and not (settings.tls.certificate and settings.tls.key):
        raise wrong("tls.certificate", "a listener with TLS needs tls.certificate and tls.key")
    if listener.tls == "mutual" and not settings.tls.client_ca:
        raise wrong("tls.client_ca", "a listener with mutual TLS needs tls.client_ca")
