"""What the sub-commands share: where the data is, how to fail, how to print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ingest.routes import NAME, NAME_RULE
from ingest.settings import Settings, load
from runtime.settings_file import SettingsError

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The node's settings (TOML).", envvar="HEADWORKS_CONFIG")
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="The node's data folder, instead of --config.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: section.key=value. May be repeated.")
]
REFUSED = 1
USAGE = 2


def name_of(value: str) -> str:
    """Return a tenant's or a device's name, if a topic could carry it."""
    if NAME.fullmatch(value) is None:
        raise typer.BadParameter(f"{value[:64]!r} is not a name: {NAME_RULE}")
    return value


def names_of(values: list[str]) -> list[str]:
    """Return names, if a topic could carry each."""
    return [name_of(value) for value in values]


TenantArgument = Annotated[str, typer.Argument(callback=name_of, help=f"A name: {NAME_RULE}.")]
DeviceArgument = TenantArgument
DevicesArgument = Annotated[list[str], typer.Argument(callback=names_of, help=f"Names: {NAME_RULE}.")]


def fail(text: str, code: int = REFUSED) -> NoReturn:
    """Say in one line what is wrong, and exit."""
    typer.echo(f"headworks: {text}", err=True)
    raise typer.Exit(code)


def settings_of(config: Path, overrides: list[str] | None = None) -> Settings:
    """Return the settings, or exit with what is wrong with them."""
    try:
        return load(config, overrides or ())
    except SettingsError as error:
        fail(str(error), USAGE)


def data_dir_of(config: Path | None, data_dir: Path | None) -> Path:
    """Return the data folder that the options name."""
    if data_dir is None and config is None:
        default = Path("var/headworks.toml")
        if not default.exists():
            fail("say where the node is: --config FILE or --data-dir DIR", USAGE)
        config = default
    if data_dir is None:
        assert config is not None
        data_dir = Path(settings_of(config).node.data_dir)
    if not data_dir.is_dir():
        fail(f"there is no folder {data_dir}; has the node been started?")
    return data_dir


def show(rows: list[Any], columns: list[str], *, as_json: bool) -> None:
    """Print structs as a table, or as a JSON list."""
    if as_json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if (value := getattr(row, column)) is None else str(value) for column in columns))
    Console().print(table)
