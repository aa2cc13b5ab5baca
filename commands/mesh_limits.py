"""`headworks mesh limits`: the service that counts for the rate limits which all proxies share."""

from __future__ import annotations

import asyncio
import socket
from typing import Annotated

import typer

from commands.common import fail
from commands.mesh_control import AuthorityOption, CertificateOption, KeyOption, files_of
from commands.mesh_options import address_of
from routing.mesh.limits.process import Terms, serve
from routing.xds.plane import ServerTls, StartError
from runtime.logs import make_log


def limits(
    *,
    bind: Annotated[str, typer.Option(help="HOST:PORT; without TLS only on loopback.")] = "127.0.0.1:18001",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    authority: AuthorityOption = None,
    valkey: Annotated[
        str,
        typer.Option(
            envvar="HEADWORKS_MESH_VALKEY",
            help="valkey://HOST:PORT, by which several services share; a password belongs in the variable.",
        ),
    ] = "",
    node: Annotated[str, typer.Option(help="The name of this service among those, if not its host's.")] = "",
    nodes: Annotated[int, typer.Option(min=1, help="How many services share, until they are counted.")] = 1,
    keys_max: Annotated[int, typer.Option(min=1, help="Who is counted apart, at once.")] = 100_000,
    calls_max: Annotated[int, typer.Option(min=1, help="Questions that are answered at once.")] = 10_000,
) -> None:
    """Answer Envoys whether a request is within a limit that they share, until SIGTERM or Ctrl-C."""
    address_of("--bind", bind)
    files = files_of(certificate, key, authority)
    terms = Terms(
        bind=bind,
        tls=None if files is None else ServerTls(certificate=files[0], key=files[1], authority=files[2]),
        keys_max=keys_max,
        calls_max=calls_max,
        valkey=valkey,
        node=node or f"{socket.gethostname()}:{bind.rpartition(':')[2]}",
        nodes=nodes,
    )
    try:
        asyncio.run(serve(terms, make_log("info", "auto")))
    except StartError as error:
        fail(str(error))
