"""`headworks tenants`: add, list, suspend and resume tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.common import ConfigOption, DataDirOption, JsonOption, TenantArgument, data_dir_of, show
from routing.tenancy.registry import DEFAULT_PLAN, Registry, Status
from runtime import clock

app = typer.Typer(help="The tenants of a node. Changes are seen within a second.", no_args_is_help=True)


@app.command("add")
def add(
    name: TenantArgument,
    plan: Annotated[str, typer.Option(help="A plan of the settings: [limits.NAME].")] = DEFAULT_PLAN,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add a tenant, or put it on another plan."""
    Registry(data_dir_of(config, data_dir) / "registry.db").add_tenant(name, plan, clock.unix_s())
    typer.echo(f"{name} is on plan {plan}")


@app.command("list")
def list_tenants(
    config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """List the tenants."""
    rows = Registry(data_dir_of(config, data_dir) / "registry.db").tenants()
    show(rows, ["name", "plan", "status"], as_json=as_json)


@app.command("suspend")
def suspend(name: TenantArgument, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Refuse a tenant's devices, and close their sessions."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_tenant_status(name, Status.SUSPENDED, clock.unix_s())
    typer.echo(f"{name} is suspended")


@app.command("resume")
def resume(name: TenantArgument, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Serve a suspended tenant again."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_tenant_status(name, Status.ACTIVE, clock.unix_s())
    typer.echo(f"{name} is active")
