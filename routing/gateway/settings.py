"""The settings of the API gateway: TOML, decoded into frozen structs; what is not known is an error.

Defaults are in the structs and in docs/guides/api.md. What the gateway does with requests is in the file that
`api.routes` names, which can change while it runs; these settings cannot.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from routing.gateway.live import LiveSettings
from routing.limits.plan import Plan, check_plan
from runtime import settings_file
from runtime.settings_file import Section, Wrong, split_bind

MIB = 1 << 20
Text = Annotated[str, msgspec.Meta(min_length=1)]
Deadline = Annotated[float, msgspec.Meta(ge=0.1, le=3600)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Entries = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class Api(Section, frozen=True):
    """The public listener, where the files are, and what a connection and a request may take."""

    bind: str = "127.0.0.1:8443"
    tls: Literal["off", "server", "optional", "mutual"] = "optional"
    data_dir: Text = "var"
    registry: str = ""
    routes: Text = "routes.toml"
    trust_domain: str = ""
    title: Text = "Headworks API"
    trusted_proxies: list[str] = msgspec.field(default_factory=list)
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    backlog: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    header_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=MIB)] = 16_384
    headers_max: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 64
    head_deadline_s: Deadline = 15.0
    body_deadline_s: Deadline = 30.0
    write_deadline_s: Deadline = 30.0
    keep_alive_s: Deadline = 75.0
    answer_bytes_held_max: Annotated[int, msgspec.Meta(ge=0, le=16 * MIB)] = 65_536
    reload_poll_s: Deadline = 1.0
    drain_deadline_s: Deadline = 20.0


class Tls(Section, frozen=True):
    """Certificate files, reloaded together when one changes."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    crl: str = ""
    handshake_deadline_s: Deadline = 15.0
    handshakes_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200


class CacheSection(Section, frozen=True):
    """What the answers that are kept may take, over all routes that have a `cache`."""

    bytes_max: Bytes = 64 * MIB
    entries_max: Entries = 10_000
    entry_bytes_max: Bytes = MIB


class Admin(Section, frozen=True):
    """Where /metrics, /healthz, /readyz and /status are served."""

    bind: str = "127.0.0.1:9091"


class Valkey(Section, frozen=True):
    """Where nodes share usage plans; without a `url` each keeps its own. `node` is this one's name."""

    url: str = ""
    node: str = ""
    nodes_expected: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1


class AnalyticsSection(Section, frozen=True):
    """The use of the API: how many keys a minute are told apart, and how often counts are written."""

    keys_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2000
    flush_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 10.0


class Log(Section, frozen=True):
    """The log, on standard error. `access` is one line a request."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    access: bool = True


class Settings(Section, frozen=True):
    """All of it."""

    api: Api = Api()
    tls: Tls = Tls()
    cache: CacheSection = CacheSection()
    limits: dict[str, Plan] = msgspec.field(default_factory=dict)
    valkey: Valkey = Valkey()
    live: LiveSettings = LiveSettings()
    analytics: AnalyticsSection = AnalyticsSection()
    admin: Admin = Admin()
    log: Log = Log()


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check the settings; raises `SettingsError`."""
    return settings_file.load(path, Settings, check=check, overrides=overrides)


def check(settings: Settings, wrong: Wrong) -> None:
    """Check what no single field can know."""
    for key, bind in (("api.bind", settings.api.bind), ("admin.bind", settings.admin.bind)):
        try:
            split_bind(bind)
        except ValueError as error:
            raise wrong(key, str(error)) from error
    host, _ = split_bind(settings.api.bind)
    if settings.api.tls == "off" and not ipaddress.ip_address(host).is_loopback:
        raise wrong("api.tls", "plaintext is for the loopback only")
    if settings.api.tls != "off" and not (settings.tls.certificate and settings.tls.key):
        raise wrong("tls.certificate", "a listener with TLS needs tls.certificate and tls.key")
    if settings.api.tls in {"optional", "mutual"} and not settings.tls.client_ca:
        raise wrong("tls.client_ca", f'api.tls = "{settings.api.tls}" needs tls.client_ca')
    for name, plan in settings.limits.items():
        check_plan(f"limits.{name}", plan, wrong)
    if settings.valkey.url and not settings.valkey.node:
        raise wrong("valkey.node", "nodes that share limits need names")
    for proxy in settings.api.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise wrong("api.trusted_proxies", str(error)) from error
