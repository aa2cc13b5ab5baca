"""Options of `headworks traffic`, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from commands.common import USAGE, fail
from commands.mesh_options import address_of
from routing.traffic.route import RouteName, named

FORM: Final = "mesh/MESH/virtualRouter/ROUTER/route/ROUTE"
RouteArgument = Annotated[str, typer.Argument(help=f"The route: {FORM}.", metavar="ROUTE")]
EndpointOption = Annotated[
    str, typer.Option(help="The App Mesh API, which `mesh serve` serves.", envvar="AWS_ENDPOINT_URL")
]
RegionOption = Annotated[
    str,
    typer.Option(help="The region that calls are signed for.", envvar=["AWS_REGION", "AWS_DEFAULT_REGION"]),
]
PlaceOption = Annotated[
    Path | None, typer.Option(help="In place of the API, the folder that `mesh xds` serves.", metavar="DIR")
]


def route_of(path: str) -> RouteName:
    """Return the names of a route, or exit."""
    found = named(path)
    if found is None:
        fail(f"{path} is not {FORM}", USAGE)
    return found


def steps_of(text: str) -> tuple[int, ...]:
    """Return steps in percent, or exit."""
    words = [each.strip() for each in text.split(",")]
    if not all(each.isascii() and each.isdecimal() and len(each) <= 3 for each in words):
        fail(f"--steps {text} is not percent with commas between, such as 5,25,50,100", USAGE)
    return tuple(int(each) for each in words)


def admins_of(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return the admin addresses of proxies, or exit."""
    for each in values or ():
        address_of(f"--envoy {each}", each)
    return tuple(values or ())
