"""`headworks keys`: issue, list, rotate and revoke API keys."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import msgspec
import typer

from commands.common import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    TenantArgument,
    data_dir_of,
    name_of,
    show,
)
from routing.tenancy.identity import Kind
from routing.tenancy.principal import EVERY_TENANT
from routing.tenancy.registry import ApiKey, Registry
from runtime import clock

app = typer.Typer(help="API keys: of devices (add), and for calls of the API (issue).", no_args_is_help=True)
DAY_S = 86_400.0
HOUR_S = 3600.0


def tenant_of(value: str) -> str:
    """Return a tenant's name, or that of all of them."""
    return value if value == EVERY_TENANT else name_of(value)


@app.command("add")
def add(
    tenant: TenantArgument,
    name: Annotated[
        str, typer.Argument(callback=name_of, help="The device or gateway that the key is for, by its name.")
    ],
    gateway: Annotated[bool, typer.Option("--gateway", help="May publish for all devices.")] = False,
    days: Annotated[float | None, typer.Option(min=0.001, help="End the key after so many days.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Issue a key. It is shown once: only its hash is kept."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    now_s = clock.unix_s()
    kind = Kind.GATEWAY if gateway else Kind.DEVICE
    _, secret = registry.issue_key(tenant, name, kind, now_s, None if days is None else now_s + days * DAY_S)
    typer.echo(secret)


@app.command("issue")
def issue(
    tenant: Annotated[
        str, typer.Argument(callback=tenant_of, help="The tenant, or * for an operator of the platform.")
    ],
    name: Annotated[str, typer.Argument(callback=name_of, help="The person or back end that will call.")],
    scopes: Annotated[
        str, typer.Option(help="What the key is good for, such as devices:read,telemetry:read.")
    ],
    plan: Annotated[str, typer.Option(help="A usage plan of the key's own: [limits.NAME].")] = "",
    days: Annotated[float | None, typer.Option(min=0.001, help="End the key after so many days.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Issue a key for calls of the API. It is shown once: only its hash is kept."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    now_s = clock.unix_s()
    _, secret = registry.issue_key(
        tenant,
        name,
        Kind.CALLER,
        now_s,
        None if days is None else now_s + days * DAY_S,
        scopes=[scope.strip() for scope in scopes.split(",") if scope.strip()],
        plan=plan,
    )
    typer.echo(secret)


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Argument()] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, without their secrets."""
    keys = Registry(data_dir_of(config, data_dir) / "registry.db").keys(tenant)
    columns = ["id", "tenant", "name", "kind", "status", "scopes", "plan", "last_used"]
    show(keys if as_json else [_Row.of(key) for key in keys], columns, as_json=as_json)


@app.command("revoke")
def revoke(key_id: str, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """End a key; connections that used it are closed."""
    Registry(data_dir_of(config, data_dir) / "registry.db").revoke_key(key_id)
    typer.echo(f"{key_id} is revoked")


@app.command("rotate")
def rotate(
    key_id: str,
    overlap_hours: Annotated[
        float, typer.Option(min=0, help="How long the old secret stays good; 0 after a leak.")
    ] = 24.0,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a key a new secret, and show it once; the old one stays good for the overlap."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    typer.echo(registry.rotate_key(key_id, clock.unix_s(), overlap_hours * HOUR_S))


class _Row(msgspec.Struct, frozen=True):
    """A key as the table shows it."""

    id: str
    tenant: str
    name: str
    kind: str
    status: str
    scopes: str
    plan: str
    last_used: str

    @classmethod
    def of(cls, key: ApiKey) -> _Row:
        used_s = key.last_used_s
        used = "" if used_s is None else f"{dt.datetime.fromtimestamp(used_s, dt.UTC):%Y-%m-%d %H:%M}Z"
        scopes = " ".join(key.scopes)
        return cls(key.id, key.tenant, key.name, key.kind, key.status, scopes, key.plan, used)
