"""`headworks api`: the API gateway, and what its routes file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from commands.common import USAGE, JsonOption, SetOption, fail, show
from routing.gateway import app as gateway
from routing.gateway import settings as gateway_settings
from routing.gateway.prepared import Served
from routing.gateway.table import RoutesRefused
from runtime.logs import make_log
from runtime.settings_file import SettingsError

app = typer.Typer(help="The API gateway.", invoke_without_command=True)


@app.callback()
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The gateway's settings (TOML).", envvar="HEADWORKS_API_CONFIG"),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Run the API gateway until SIGTERM or Ctrl-C; exit code 0 after a clean drain."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        fail("say where the settings are: --config FILE", USAGE)
    try:
        settings = gateway_settings.load(config, overrides or ())
    except SettingsError as error:
        fail(str(error), USAGE)
    try:
        gateway.serve(settings, make_log(settings.log.level, settings.log.format))
    except gateway.StartError as error:
        fail(str(error))


class RouteRow(msgspec.Struct, frozen=True):
    """A route as it is listed."""

    name: str
    method: str
    path: str
    version: str
    upstream: str
    access: str


@app.command("check")
def check(routes: Path, as_json: JsonOption = False) -> None:
    """Check a routes file with the documents that it names, and list its routes."""
    try:
        loaded = gateway.Loaded(routes, "Headworks API")
    except (SettingsError, RoutesRefused) as error:
        fail(str(error), USAGE)
    show(rows_of(loaded.served), list(RouteRow.__struct_fields__), as_json=as_json)


def rows_of(served: Served) -> list[RouteRow]:
    """Return the routes as they are listed."""
    return [
        RouteRow(
            name=route.name,
            method=route.method,
            path=route.path,
            version=served.prepared[route.name].version,
            upstream=route.upstream,
            access="public" if route.public else " ".join([*route.authorizers, *route.scopes]),
        )
        for route in served.routes.routes
    ]
