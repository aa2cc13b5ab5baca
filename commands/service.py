"""`headworks service`: the small services behind the API gateway, each a process of its own."""

from __future__ import annotations

import enum
import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.common import USAGE, SetOption, fail
from runtime.logs import make_log
from runtime.settings_file import SettingsError
from services import settings
from services.web import openapi, process
from services.web.operations import Operations

app = typer.Typer(help="The services behind the API gateway.", no_args_is_help=True)
ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The services' settings (TOML).", envvar="HEADWORKS_SERVICES_CONFIG"),
]


class Name(enum.Enum):
    """The services by name."""

    DEVICE = "device"
    DATA = "data"
    ANALYTICS = "analytics"


def _module(name: Name) -> Any:
    """Return the module of a service: what makes it, as `made`, and its `operations`."""
    return importlib.import_module(f"services.{name.value}.app")


def operations_of(name: Name) -> Operations[Any]:
    """Return what a service does."""
    operations: Operations[Any] = _module(name).operations()
    return operations


@app.command("device")
def device(config: ConfigOption, overrides: SetOption = None) -> None:
    """Serve tenants, devices, certificates, groups, shadows and keys until SIGTERM."""
    _serve(Name.DEVICE, config, overrides)


@app.command("analytics")
def analytics(config: ConfigOption, overrides: SetOption = None) -> None:
    """Serve roll-ups, series and anomalies of the telemetry in the stream until SIGTERM."""
    _serve(Name.ANALYTICS, config, overrides)


@app.command("data")
def data(config: ConfigOption, overrides: SetOption = None) -> None:
    """Take telemetry in from the stream, and serve it until SIGTERM."""
    _serve(Name.DATA, config, overrides)


@app.command("openapi")
def show_openapi(name: Name) -> None:
    """Print the OpenAPI document of a service."""
    typer.echo(openapi.encoded(operations_of(name)).decode(), nl=False)


def _serve(name: Name, config: Path, overrides: list[str] | None) -> None:
    try:
        found = settings.load(config, overrides or ())
    except SettingsError as error:
        fail(str(error), USAGE)
    made: process.Made = _module(name).made
    bind: str = getattr(found, name.value).bind
    log = make_log(found.log.level, found.log.format)
    try:
        process.run(name.value, made, found, bind=bind, log=log)
    except process.StartError as error:
        fail(str(error))
