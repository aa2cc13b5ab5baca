"""`headworks keys`: issue, list, rotate and revoke API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.common import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    TenantArgument,
    data_dir_of,
    fail,
    name_of,
    show,
)
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Registry
from runtime import clock

app = typer.Typer(help="API keys for HTTP and WebSocket.", no_args_is_help=True)
DAY_S = 86_400.0


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


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Argument()] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, without their secrets."""
    rows = Registry(data_dir_of(config, data_dir) / "registry.db").keys(tenant)
    show(rows, ["id", "tenant", "name", "kind", "status"], as_json=as_json)


@app.command("revoke")
def revoke(key_id: str, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """End a key; connections that used it are closed."""
    Registry(data_dir_of(config, data_dir) / "registry.db").revoke_key(key_id)
    typer.echo(f"{key_id} is revoked")


@app.command("rotate")
def rotate(key_id: str, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Issue a new key for the same device; the old one stays good until it is revoked."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    old = next((key for key in registry.keys(None) if key.id == key_id), None)
    if old is None:
        fail(f"there is no key {key_id}")
    if old.expires_s is not None and old.expires_s <= clock.unix_s():
        fail(f"{key_id} has ended, and its successor would with it; add a new key")
    _, secret = registry.issue_key(old.tenant, old.name, Kind(old.kind), clock.unix_s(), old.expires_s)
    typer.echo(secret)
