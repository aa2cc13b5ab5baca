"""Options that the commands of the mesh share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from commands.common import USAGE, fail
from routing.mesh.compile.proxy import Address

PlaceArgument = Annotated[
    Path, typer.Argument(help="A folder, or a file, of App Mesh resources.", metavar="DIR")
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter", "-p", help="A value that a template does not have: NAME=VALUE. May be repeated."
    ),
]
EndpointsOption = Annotated[
    Path | None,
    typer.Option(help='Endpoints in place of discovery, JSON: {"node": ["10.0.0.1", "10.0.0.2:8080"]}.'),
]
ApplicationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--app",
        help="Bind a port of the node, and pass on to the application: PORT=HOST:PORT. May be repeated.",
    ),
]
TcpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tcp", help="A listener for a backend that speaks TCP: SERVICE=HOST:PORT. May be repeated."
    ),
]
RegionOption = Annotated[str, typer.Option(help="The region that the proxy is in.")]
ZoneOption = Annotated[str, typer.Option(help="The zone that the proxy is in.")]
TrustDomainOption = Annotated[str, typer.Option(help="The trust domain of the mesh's SPIFFE ids.")]
ListenOption = Annotated[str, typer.Option(help="The address on which the node is called.")]
PortOption = Annotated[int, typer.Option(min=1, max=65_535)]
StatsOption = Annotated[
    str,
    typer.Option("--stats", help="Where GET /stats/prometheus can be asked for by a scraper: HOST:PORT."),
]
SdsOption = Annotated[str, typer.Option(help="The Unix socket of a Secret Discovery Service.")]


def parameters_of(parameters: Sequence[str] | None) -> dict[str, str]:
    """Return parameters by name, or exit."""
    given = {}
    for each in parameters or ():
        name, separator, value = each.partition("=")
        if not separator:
            fail(f"--parameter {each} is not NAME=VALUE", USAGE)
        given[name] = value
    return given


def addresses(option: str, values: Sequence[str] | None) -> dict[str, Address]:
    """Return addresses by what stands before them, or exit."""
    made = {}
    for each in values or ():
        key, _, at = each.partition("=")
        if not key:
            fail(f"{option} {each} does not end with =HOST:PORT", USAGE)
        made[key] = address_of(f"{option} {each}", at, "=HOST:PORT")
    return made


def applications_of(values: Sequence[str] | None) -> dict[int, Address]:
    """Return the applications by the port of the node, or exit."""
    return {_port(key): at for key, at in addresses("--app", values).items()}


def address_of(said: str, text: str, form: str = "HOST:PORT") -> Address:
    """Return an address, or exit."""
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65_536):
        fail(f"{said} does not end with {form}", USAGE)
    return Address(host.strip("[]"), int(port))


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65_536):
        fail(f"--app {text} does not begin with a port", USAGE)
    return int(text)
