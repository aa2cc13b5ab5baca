"""`headworks mesh`: App Mesh resources checked, and exported as what Envoys run, and served to them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from commands import mesh_apply, mesh_control, mesh_graph, mesh_limits, mesh_register
from commands.common import REFUSED, USAGE, JsonOption, SetOption, fail
from commands.mesh_options import (
    ApplicationOption,
    EndpointsOption,
    ListenOption,
    ParameterOption,
    PlaceArgument,
    PortOption,
    RegionOption,
    SdsOption,
    StatsOption,
    TcpOption,
    TrustDomainOption,
    ZoneOption,
    address_of,
    addresses,
    applications_of,
    parameters_of,
)
from routing.mesh import service_connect
from routing.mesh.api import process as api_process
from routing.mesh.api import settings as api_settings
from routing.mesh.api.store import StoreError
from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled, static
from routing.mesh.compile.proxy import Endpoint, Proxy, Standing
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import read
from routing.mesh.meshes import Meshes, meshes_of
from routing.mesh.model.resources import VirtualGateway, VirtualNode
from routing.mesh.problem import Problem, Severity
from routing.mesh.snapshot import MeshSnapshot
from routing.xds.configurations import endpoints_in
from routing.xds.plane import StartError
from runtime.logs import make_log
from runtime.settings_file import SettingsError

app = typer.Typer(help="The service mesh: App Mesh resources, run by Envoys.", no_args_is_help=True)
UNSUPPORTED = 3
"""The exit code where a mesh is consistent, but something of it is not supported."""
app.command("bootstrap")(mesh_control.bootstrap)
app.command("xds")(mesh_control.xds)
app.command("status")(mesh_control.status)
app.command("import")(mesh_apply.import_)
app.command("diff")(mesh_apply.diff)
app.command("apply")(mesh_apply.apply)
app.command("graph")(mesh_graph.graph)
app.command("limits")(mesh_limits.limits)
app.command("register")(mesh_register.register)


class Format(Enum):
    """What a proxy is exported as."""

    ENVOY = "envoy"
    ECS_SERVICE_CONNECT = "ecs-service-connect"


@app.command("check")
def check(place: PlaceArgument, parameters: ParameterOption = None, as_json_: JsonOption = False) -> None:
    """Check App Mesh resources: exit code 1 after errors, 3 where something is not supported."""
    meshes = _meshes(place, parameters)
    problems = [*meshes.problems, *_uncompilable(meshes)]
    if as_json_:
        shown = {
            "meshes": {name: len(snapshot.resources) for name, snapshot in meshes.snapshots.items()},
            "problems": problems,
        }
        typer.echo(msgspec.json.encode(shown).decode())
    else:
        for problem in problems:
            typer.echo(str(problem))
        for name, snapshot in meshes.snapshots.items():
            typer.echo(f"{name}: {_counted(snapshot)}")
    severities = {problem.severity for problem in problems}
    if Severity.ERROR in severities:
        raise typer.Exit(REFUSED)
    if Severity.UNSUPPORTED in severities:
        raise typer.Exit(UNSUPPORTED)


@app.command("export")
def export(
    place: PlaceArgument,
    *,
    node: Annotated[
        str,
        typer.Option(help="A virtual node or gateway: its name, or virtualGateway/NAME where both have it."),
    ],
    mesh: Annotated[str, typer.Option(help="The mesh, where there are several.")] = "",
    format_: Annotated[Format, typer.Option("--format", help="What is exported.")] = Format.ENVOY,
    parameters: ParameterOption = None,
    endpoints: EndpointsOption = None,
    applications: ApplicationOption = None,
    tcp_backends: TcpOption = None,
    listen: ListenOption = Proxy().listen,
    ingress_port: PortOption = Proxy().ingress_port,
    egress_port: PortOption = Proxy().egress_port,
    admin_port: PortOption = Proxy().admin_port,
    sds_socket: SdsOption = "",
    stats: StatsOption = "",
    trust_domain: TrustDomainOption = "",
    region: RegionOption = "",
    zone: ZoneOption = "",
    namespace: Annotated[
        str,
        typer.Option(
            help="The namespace of AWS Cloud Map, for ECS Service Connect; the node's own if not said."
        ),
    ] = "",
) -> None:
    """Print the configuration of a node's Envoy, which runs as it is: envoy -c FILE.

    With --format ecs-service-connect, print what its ECS service takes; what is lost is named on standard
    error, and the exit code is 3.
    """
    meshes = _meshes(place, parameters)
    proxy = Proxy(
        listen=listen,
        ingress_port=ingress_port,
        egress_port=egress_port,
        admin_port=admin_port,
        applications=applications_of(applications),
        tcp_backends=addresses("--tcp", tcp_backends),
        endpoints={} if endpoints is None else _endpoints(endpoints),
        sds_socket=sds_socket,
        stats=address_of("--stats", stats) if stats else None,
        trust_domain=trust_domain,
        standing=Standing(region, zone),
    )
    errors = [problem for problem in meshes.problems if problem.severity is Severity.ERROR]
    if errors:
        _fail(errors, REFUSED)
    snapshot = _chosen(meshes, mesh)
    if format_ is Format.ECS_SERVICE_CONNECT:
        _export_to_ecs(snapshot, _proxied(snapshot, node), namespace)
        return
    try:
        made = compiled(snapshot, _proxied(snapshot, node), proxy)
    except Uncompilable as error:
        _fail(error.problems, UNSUPPORTED)
    typer.echo(msgspec.json.format(msgspec.json.encode(as_json(static(made, proxy)))).decode())


@app.command("serve")
def serve(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The API's settings (TOML).", envvar="HEADWORKS_MESH_CONFIG"),
    ],
    overrides: SetOption = None,
) -> None:
    """Serve the App Mesh API, and what it keeps to Envoys, until SIGTERM."""
    try:
        found = api_settings.load(config, overrides or ())
        api_process.run(found, make_log(found.log.level, found.log.format))
    except SettingsError as error:
        fail(str(error), USAGE)
    except (StartError, StoreError) as error:
        fail(str(error))


def _export_to_ecs(snapshot: MeshSnapshot, node: VirtualNode | VirtualGateway, namespace: str) -> None:
    if isinstance(node, VirtualGateway):
        fail(
            f"{node.path}: Service Connect has no gateways; put a load balancer before its services",
            UNSUPPORTED,
        )
    try:
        made = service_connect.exported(snapshot, node, namespace)
    except service_connect.NoNamespace as error:
        fail(f"{error}: give --namespace", USAGE)
    typer.echo(msgspec.json.format(msgspec.json.encode(made.config)).decode())
    if made.lost:
        _fail(made.lost, UNSUPPORTED)


def _meshes(place: Path, parameters: Sequence[str] | None) -> Meshes:
    return meshes_of(read(place, parameters_of(parameters)))


def _uncompilable(meshes: Meshes) -> list[Problem]:
    """Return what no single resource shows, but an export would."""
    found: set[Problem] = set()
    for snapshot in meshes.snapshots.values():
        found_later: dict[str, tuple[Endpoint, ...]] = {
            name: ()
            for name, node in snapshot.nodes.items()
            if node.spec.service_discovery is not None
            and node.spec.service_discovery.aws_cloud_map is not None
        }
        proxy = Proxy(sds_socket="/given-at-export", trust_domain="given.at.export", endpoints=found_later)
        proxied: list[VirtualNode | VirtualGateway] = [*snapshot.nodes.values(), *snapshot.gateways.values()]
        for each in proxied:
            try:
                compiled(snapshot, each, proxy)
            except Uncompilable as error:
                found.update(error.problems)
    known = {(problem.resource, problem.field, problem.text) for problem in meshes.problems}
    new = [each for each in found if (each.resource, each.field, each.text) not in known]
    return sorted(new, key=lambda each: (each.resource, each.field, each.text))


def _counted(snapshot: MeshSnapshot) -> str:
    counts = {
        "virtual services": len(snapshot.services),
        "virtual nodes": len(snapshot.nodes),
        "virtual routers": len(snapshot.routers),
        "routes": sum(len(snapshot.routes(name)) for name in snapshot.routers),
        "virtual gateways": len(snapshot.gateways),
        "gateway routes": sum(len(snapshot.gateway_routes(name)) for name in snapshot.gateways),
        "policies": len(snapshot.policies),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _chosen(meshes: Meshes, name: str) -> MeshSnapshot:
    names = ", ".join(sorted(meshes.snapshots)) or "none"
    if name:
        if name not in meshes.snapshots:
            fail(f"there is no mesh {name}, but {names}", USAGE)
        return meshes.snapshots[name]
    if len(meshes.snapshots) != 1:
        fail(f"say which mesh: --mesh, of {names}", USAGE)
    (snapshot,) = meshes.snapshots.values()
    return snapshot


def _proxied(snapshot: MeshSnapshot, name: str) -> VirtualNode | VirtualGateway:
    kind, _, own = name.rpartition("/")
    node = snapshot.nodes.get(own) if kind in {"", "virtualNode"} else None
    gateway = snapshot.gateways.get(own) if kind in {"", "virtualGateway"} else None
    if node is not None and gateway is not None:
        fail(f"say which {own}: virtualNode/{own} or virtualGateway/{own}", USAGE)
    found: VirtualNode | VirtualGateway | None = node if node is not None else gateway
    if found is None:
        names = ", ".join(sorted([*snapshot.nodes, *snapshot.gateways])) or "none"
        fail(f"there is no virtual node or gateway {name}, but {names}", USAGE)
    return found


def _fail(problems: Sequence[Problem], code: int) -> None:
    for problem in problems:
        typer.echo(str(problem), err=True)
    raise typer.Exit(code)


def _endpoints(path: Path) -> dict[str, tuple[Endpoint, ...]]:
    try:
        return endpoints_in(path.read_bytes())
    except msgspec.DecodeError as error:
        fail(f"{path}: {error}", USAGE)
