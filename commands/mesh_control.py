"""`headworks mesh bootstrap|xds|status`: the control plane, who asks it, and what it knows of them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from commands.common import USAGE, JsonOption, fail
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
from routing.mesh.compile.messages import as_json
from routing.mesh.compile.proxy import Proxy, Standing
from routing.xds.bootstrap import ClientTls
from routing.xds.bootstrap import bootstrap as bootstrap_of
from routing.xds.cloud_map import CloudMapTerms
from routing.xds.issuer import IssuerFiles
from routing.xds.plane import ServerTls, StartError, Terms
from routing.xds.process import Place, serve
from routing.xds.status import Unreachable, fetched
from runtime.logs import make_log

NODE: Final = re.compile(r"mesh/([^/\s]+)/virtual(Node|Gateway)/[^/\s]+")
SocketOption = Annotated[Path, typer.Option("--status-socket", help="The Unix socket of `mesh status`.")]
STATUS_SOCKET: Final = Path("headworks-mesh.sock")
CertificateOption = Annotated[Path | None, typer.Option(help="A certificate and its chain, PEM.")]
KeyOption = Annotated[Path | None, typer.Option(help="The certificate's key, PEM.")]
AuthorityOption = Annotated[Path | None, typer.Option("--ca", help="The authority of the other side, PEM.")]


def bootstrap(
    node: Annotated[str, typer.Argument(help="mesh/MESH/virtualNode/NAME or mesh/MESH/virtualGateway/NAME.")],
    *,
    server: Annotated[str, typer.Option(help="The control plane: HOST:PORT.")],
    certificate: CertificateOption = None,
    key: KeyOption = None,
    authority: AuthorityOption = None,
    delta: Annotated[bool, typer.Option(help="Ask for what is different, and not for all.")] = True,
    applications: ApplicationOption = None,
    tcp_backends: TcpOption = None,
    listen: ListenOption = Proxy().listen,
    ingress_port: PortOption = Proxy().ingress_port,
    egress_port: PortOption = Proxy().egress_port,
    admin_port: PortOption = Proxy().admin_port,
    sds_socket: SdsOption = "",
    stats: StatsOption = "",
    region: RegionOption = "",
    zone: ZoneOption = "",
) -> None:
    """Print what a node's Envoy is started with to ask the control plane: envoy -c FILE."""
    found = NODE.fullmatch(node)
    if found is None:
        fail(f"{node} is not mesh/MESH/virtualNode/NAME or mesh/MESH/virtualGateway/NAME", USAGE)
    proxy = Proxy(
        listen=listen,
        ingress_port=ingress_port,
        egress_port=egress_port,
        admin_port=admin_port,
        applications=applications_of(applications),
        tcp_backends=addresses("--tcp", tcp_backends),
        sds_socket=sds_socket,
        stats=address_of("--stats", stats) if stats else None,
        standing=Standing(region, zone),
    )
    files = files_of(certificate, key, authority)
    tls = None if files is None else ClientTls(certificate=files[0], key=files[1], authority=files[2])
    made = bootstrap_of(node, found[1], proxy, address_of("--server", server), tls=tls, delta=delta)
    typer.echo(msgspec.json.format(msgspec.json.encode(as_json(made))).decode())


def xds(
    place: PlaceArgument,
    *,
    bind: Annotated[str, typer.Option(help="HOST:PORT; without TLS only on loopback.")] = "127.0.0.1:18000",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    authority: AuthorityOption = None,
    trust_domain: TrustDomainOption = "",
    issuer_certificate: Annotated[
        Path | None, typer.Option(help="The authority that issues proxies' certificates, and its chain, PEM.")
    ] = None,
    issuer_key: Annotated[Path | None, typer.Option(help="The authority's key, PEM, mode 0600.")] = None,
    trust_bundle: Annotated[
        Path | None,
        typer.Option(help="The authorities that proxies trust, PEM; the issuer alone, if not said."),
    ] = None,
    certificate_ttl_s: Annotated[
        float, typer.Option(min=1, help="How long an issued certificate is valid; renewed at two thirds.")
    ] = 3600.0,
    cloud_map_regions: Annotated[
        list[str] | None,
        typer.Option(
            "--cloud-map-region",
            help="The region of the AWS Cloud Map that is asked for nodes there. May be repeated.",
        ),
    ] = None,
    cloud_map_endpoint: Annotated[
        str, typer.Option(help="Another address of AWS Cloud Map than that of its region.")
    ] = "",
    cloud_map_poll_s: Annotated[
        float, typer.Option(min=0.1, help="How often each service is asked for.")
    ] = 5.0,
    parameters: ParameterOption = None,
    endpoints: EndpointsOption = None,
    streams_max: Annotated[int, typer.Option(min=1, help="Proxies that are served at once.")] = 5000,
    status_socket: SocketOption = STATUS_SOCKET,
) -> None:
    """Serve resources to Envoys until SIGTERM or Ctrl-C; read again when a file changes."""
    address_of("--bind", bind)
    files = files_of(certificate, key, authority)
    terms = Terms(
        bind=bind,
        tls=None if files is None else ServerTls(certificate=files[0], key=files[1], authority=files[2]),
        trust_domain=trust_domain,
        streams_max=streams_max,
        status_socket=status_socket,
        issuer=_authority(issuer_certificate, issuer_key, trust_bundle),
        certificate_ttl_s=certificate_ttl_s,
        cloud_map=CloudMapTerms(tuple(cloud_map_regions), cloud_map_endpoint, cloud_map_poll_s)
        if cloud_map_regions
        else None,
    )
    try:
        asyncio.run(
            serve(Place(place, parameters_of(parameters), endpoints), terms, make_log("info", "auto"))
        )
    except StartError as error:
        fail(str(error))


def status(status_socket: SocketOption = STATUS_SOCKET, as_json_: JsonOption = False) -> None:
    """Print what each connected Envoy runs: its node, type, version, and why it refused a later one."""
    try:
        rows = asyncio.run(fetched(status_socket))
    except Unreachable as error:
        fail(str(error))
    if as_json_:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(*[Column(each, overflow="fold") for each in ("node", "type", "version", "state", "why")])
    for row in rows:
        table.add_row(row.node, row.type or "-", row.version or "-", row.state, row.error)
    Console().print(table)


def _authority(certificate: Path | None, key: Path | None, bundle: Path | None) -> IssuerFiles | None:
    if certificate is None and key is None and bundle is None:
        return None
    if certificate is None or key is None:
        fail("--issuer-certificate and --issuer-key go together", USAGE)
    return IssuerFiles(certificate, key, bundle)


def files_of(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> tuple[Path, Path, Path] | None:
    """Return the three files, or none if none is given, or exit."""
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        fail("--certificate, --key and --ca go together", USAGE)
    for each in (certificate, key, authority):
        if not each.is_file():
            fail(f"there is no {each}", USAGE)
    return certificate, key, authority
