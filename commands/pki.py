"""`headworks pki`: the development certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from commands.common import JsonOption
from ingest.pki import DevelopmentCa, Issued

app = typer.Typer(help="A development CA: server, device and gateway certificates.", no_args_is_help=True)
DirOption = Annotated[Path, typer.Option("--dir", help="The CA's folder.")]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long the certificate is good.")]
DEFAULT_DIR = Path("var/pki")


def _print(issued: Issued, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(issued, enc_hook=str).decode())
    else:
        typer.echo(f"certificate {issued.certificate}\nkey         {issued.key}")


@app.command("init")
def init(folder: DirOption = DEFAULT_DIR) -> None:
    """Make a CA with an empty revocation list, unless there is one."""
    ca = DevelopmentCa.create(folder)
    typer.echo(f"CA certificate {ca.ca_path}\nrevocations    {ca.crl_path}")


@app.command("server")
def server(
    hosts: Annotated[list[str], typer.Argument(help="Host names and addresses.")],
    folder: DirOption = DEFAULT_DIR,
    days: DaysOption = 365,
    as_json: JsonOption = False,
) -> None:
    """Issue a server certificate."""
    _print(DevelopmentCa(folder).server(hosts, days=days), as_json=as_json)


@app.command("device")
def device(
    tenant: str,
    device: str,
    folder: DirOption = DEFAULT_DIR,
    days: DaysOption = 365,
    as_json: JsonOption = False,
) -> None:
    """Issue a certificate for a device of a tenant."""
    _print(DevelopmentCa(folder).device(tenant, device, days=days), as_json=as_json)


@app.command("gateway")
def gateway(
    tenant: str,
    gateway: str,
    folder: DirOption = DEFAULT_DIR,
    days: DaysOption = 365,
    as_json: JsonOption = False,
) -> None:
    """Issue a certificate for a gateway, which may publish for every device of its tenant."""
    _print(DevelopmentCa(folder).device(tenant, gateway, days=days, kind="gateway"), as_json=as_json)


@app.command("revoke")
def revoke(certificate: Path, folder: DirOption = DEFAULT_DIR) -> None:
    """Put a certificate on the revocation list; a running node closes its sessions within seconds."""
    serial = DevelopmentCa(folder).revoke(certificate)
    typer.echo(f"revoked {serial:x}")


@app.command("crl")
def crl(folder: DirOption = DEFAULT_DIR) -> None:
    """Write the revocation list anew, good for another 30 days."""
    ca = DevelopmentCa(folder)
    ca.renew_crl()
    typer.echo(str(ca.crl_path))
