"""`headworks devices`: add, import, list, suspend and resume devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from ingest import clock
from ingest.commands.common import ConfigOption, DataDirOption, JsonOption, data_dir_of, fail, show
from routing.tenancy.registry import Registry, RegistryError, Status

app = typer.Typer(help="The devices of a node. Changes are seen within a second.", no_args_is_help=True)
BATCH = 10_000


@app.command("add")
def add(tenant: str, devices: list[str], config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Add devices of a tenant."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    try:
        added = registry.add_devices(tenant, devices, clock.unix_s())
    except RegistryError as error:
        fail(str(error))
    typer.echo(f"{added} added")


@app.command("import")
def import_devices(
    tenant: str,
    file: Annotated[Path, typer.Argument(help="A text file with one device name a line.", exists=True)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add many devices of a tenant, with a progress bar."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    added = 0
    try:
        for batch in track(list(_batches(names)), description="importing"):
            added += registry.add_devices(tenant, batch, clock.unix_s())
    except RegistryError as error:
        fail(str(error))
    typer.echo(f"{added} added, {len(names) - added} were there")


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH]


@app.command("list")
def list_devices(
    tenant: Annotated[str | None, typer.Argument()] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the devices of one tenant or of all."""
    rows = Registry(data_dir_of(config, data_dir) / "registry.db").devices(tenant)
    show(rows, ["tenant", "name", "status"], as_json=as_json)


@app.command("suspend")
def suspend(tenant: str, device: str, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Refuse a device, and close its sessions."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_device_status(tenant, device, Status.SUSPENDED, clock.unix_s())
    typer.echo(f"{tenant}/{device} is suspended")


@app.command("resume")
def resume(tenant: str, device: str, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Serve a suspended device again."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_device_status(tenant, device, Status.ACTIVE, clock.unix_s())
    typer.echo(f"{tenant}/{device} is active")
