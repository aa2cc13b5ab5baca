"""The command `headworks`."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated, Final

import typer

from commands import (
    api,
    audit,
    deadletters,
    dev,
    devices,
    doctor,
    keys,
    mesh,
    pki,
    query,
    serve,
    service,
    settings,
    spool,
    tenants,
)
from ingest.app import is_compiled
from ingest.pki import PkiError
from ingest.spool.store import SpoolError
from routing.tenancy.audit import AuditError
from routing.tenancy.registry import RegistryError

PRIVATE: Final = 0o077
"""The files of a node, spools, keys and all, are for its own user; certificates say otherwise themselves."""

app = typer.Typer(
    name="headworks",
    help="Telemetry in over MQTT, HTTP and WebSocket; durable before it is acknowledged; out to Kinesis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("dev")(dev.dev)
app.command("query")(query.query)
app.command("doctor")(doctor.doctor)
app.command("settings")(settings.settings)
app.add_typer(api.app, name="api")
app.add_typer(mesh.app, name="mesh")
app.add_typer(pki.app, name="pki")
app.add_typer(tenants.app, name="tenants")
app.add_typer(devices.app, name="devices")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(service.app, name="service")
app.add_typer(spool.app, name="spool")
app.add_typer(deadletters.app, name="deadletters")


def _version(show: bool) -> None:  # typer's callback
    if show:
        how = "compiled" if is_compiled() else "pure Python"
        typer.echo(f"{importlib.metadata.version('headworks')} ({how})")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # typer's own style
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line; what the world has done wrong is one line, and exit code 1."""
    os.umask(PRIVATE)
    try:
        app()
    except (AuditError, RegistryError, SpoolError, PkiError, OSError) as error:
        sys.exit(f"headworks: {error}")


if __name__ == "__main__":
    main()
