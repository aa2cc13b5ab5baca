"""`headworks service`: the small services behind the API gateway, each a process of its own."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from commands.common import USAGE, SetOption, fail
from runtime.logs import make_log
from runtime.settings_file import SettingsError
from services import settings
from services.analytics import app as analytics_app
from services.data import app as data_app
from services.device import app as device_app
from services.settings import Settings
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


class _Service(msgspec.Struct, frozen=True):
    """How a service is made, where it listens, and what it does."""

    made: process.Made
    bind: Callable[[Settings], str]
    operations: Callable[[], Operations[Any]]


SERVICES: Final = {
    Name.DEVICE: _Service(device_app.made, lambda found: found.device.bind, device_app.operations),
    Name.ANALYTICS: _Service(
        analytics_app.made, lambda found: found.analytics.bind, analytics_app.operations
    ),
    Name.DATA: _Service(data_app.made, lambda found: found.data.bind, data_app.operations),
}


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
    typer.echo(openapi.encoded(SERVICES[name].operations()).decode(), nl=False)


def _serve(name: Name, config: Path, overrides: list[str] | None) -> None:
    try:
        found = settings.load(config, overrides or ())
    except SettingsError as error:
        fail(str(error), USAGE)
    service = SERVICES[name]
    log = make_log(found.log.level, found.log.format)
    try:
        process.run(name.value, service.made, found, bind=service.bind(found), log=log)
    except process.StartError as error:
        fail(str(error))
