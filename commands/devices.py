"""`headworks devices`: add, import, list, suspend and resume devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from commands.common import (
    ConfigOption,
    DataDirOption,
    DeviceArgument,
    DevicesArgument,
    JsonOption,
    TenantArgument,
    data_dir_of,
    fail,
    show,
)
from ingest.routes import NAME, NAME_RULE
from routing.tenancy.registry import Registry, Status
from runtime import clock

app = typer.Typer(help="The devices of a node. Changes are seen within a second.", no_args_is_help=True)
BATCH = 10_000


@app.command("add")
def add(
    tenant: TenantArgument,
    devices: DevicesArgument,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add devices of a tenant."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    added = registry.add_devices(tenant, devices, clock.unix_s())
    typer.echo(f"{added} added")


@app.command("import")
def import_devices(
    tenant: TenantArgument,
    file: Annotated[Path, typer.Argument(help="A text file with one device name a line.", exists=True)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add many devices of a tenant, with a progress bar."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    names = _read_names(file)
    added = 0
    for batch in track(list(_batches(names)), description="importing"):
        added += registry.add_devices(tenant, batch, clock.unix_s())
    typer.echo(f"{added} added, {len(names) - added} were there")


def _read_names(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {file}: {error}")
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and NAME.fullmatch(name) is None:
            fail(f"{file}:{number}: {name[:64]!r} is not a name: {NAME_RULE}; nothing was added")
        if name:
            names.append(name)
    return names


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
def suspend(
    tenant: TenantArgument,
    device: DeviceArgument,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Refuse a device, and close its sessions."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_device_status(tenant, device, Status.SUSPENDED, clock.unix_s())
    typer.echo(f"{tenant}/{device} is suspended")


@app.command("resume")
def resume(
    tenant: TenantArgument,
    device: DeviceArgument,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Serve a suspended device again."""
    registry = Registry(data_dir_of(config, data_dir) / "registry.db")
    registry.set_device_status(tenant, device, Status.ACTIVE, clock.unix_s())
    typer.echo(f"{tenant}/{device} is active")
