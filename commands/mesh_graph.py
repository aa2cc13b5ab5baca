"""`headworks mesh graph`: a drawing of the mesh, with what its proxies count."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from commands.common import USAGE, JsonOption, fail
from commands.mesh_options import ParameterOption, PlaceArgument, address_of, parameters_of
from routing.mesh.documents.reading import read
from routing.mesh.graph.calls import Graph, Traffic, graph_of
from routing.mesh.graph.drawing import drawn
from routing.mesh.graph.live import Unread, from_prometheus, from_proxies
from routing.mesh.meshes import meshes_of
from routing.mesh.problem import Severity
from routing.mesh.snapshot import MeshSnapshot


def graph(
    place: PlaceArgument,
    *,
    mesh: Annotated[str, typer.Option(help="The mesh, where there are several.")] = "",
    proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--envoy",
            help="Where a proxy says its statistics: NODE=HOST:PORT, or virtualGateway/NAME=HOST:PORT.",
        ),
    ] = None,
    prometheus: Annotated[str, typer.Option(help="The URL of a Prometheus that scrapes the proxies.")] = "",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long is counted.")] = 5.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the SVG goes; standard output if not said.")
    ] = None,
    parameters: ParameterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw who calls whom (SVG), with rates, failures and latencies where proxies or Prometheus are asked."""
    if proxies and prometheus:
        fail("--envoy and --prometheus exclude each other", USAGE)
    snapshot = _chosen(place, parameters, mesh)
    traffic: dict[tuple[str, str], Traffic] = {}
    counted = 0.0
    try:
        if proxies:
            traffic = asyncio.run(from_proxies(snapshot, _addresses(snapshot, proxies), seconds))
            counted = seconds
        elif prometheus:
            counted = max(1, round(seconds))
            traffic = asyncio.run(from_prometheus(prometheus, snapshot.mesh.mesh_name, int(counted)))
    except Unread as error:
        fail(str(error))
    made = graph_of(snapshot, traffic, counted)
    text = _json(made) if as_json else drawn(made)
    if output is None:
        typer.echo(text, nl=as_json)
    else:
        output.write_text(text)


def _chosen(place: Path, parameters: Sequence[str] | None, name: str) -> MeshSnapshot:
    try:
        meshes = meshes_of(read(place, parameters_of(parameters)))
    except OSError as error:
        fail(str(error), USAGE)
    errors = [str(each) for each in meshes.problems if each.severity is Severity.ERROR]
    if errors:
        fail("\n".join(errors))
    names = ", ".join(sorted(meshes.snapshots))
    if name and name not in meshes.snapshots:
        fail(f"there is no mesh {name}, but {names}", USAGE)
    if not name and len(meshes.snapshots) != 1:
        fail(f"say which mesh: --mesh, of {names}", USAGE)
    return meshes.snapshots[name or names]


def _addresses(snapshot: MeshSnapshot, given: Sequence[str]) -> dict[str, str]:
    made = {}
    for each in given:
        name, equals, address = each.partition("=")
        kind, _, own = name.rpartition("/")
        known = snapshot.gateways if kind == "virtualGateway" else snapshot.nodes
        if not equals or own not in known:
            fail(f"--envoy {each}: write NODE=HOST:PORT, of a node of the mesh", USAGE)
        address_of(f"--envoy {each}", address)
        made[f"{kind or 'virtualNode'}/{own}"] = address
    return made


def _json(graph: Graph) -> str:
    calls = [
        {
            **msgspec.structs.asdict(each),
            **msgspec.to_builtins(graph.traffic.get((each.caller, each.callee), {})),
        }
        for each in graph.calls
    ]
    proxies = [*graph.gateways, *graph.nodes]
    return msgspec.json.encode(
        {"mesh": graph.mesh, "proxies": proxies, "calls": calls, "seconds": graph.seconds}
    ).decode()
