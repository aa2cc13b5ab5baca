"""The command `headworks`: the names of its commands, each of which is a module of its own here."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from ingest.pki import PkiError
from ingest.spool.store import SpoolError
from routing.tenancy.audit import AuditError
from routing.tenancy.registry import RegistryError

PRIVATE: Final = 0o077
"""The files of a node, spools, keys and all, are for its own user; certificates say otherwise themselves."""

COMMANDS: Final = {
    "serve": "Run a node until SIGTERM or Ctrl-C; exit code 0 after a clean drain.",
    "dev": "Start a node with a development CA and a fleet over mutual TLS; exit 0 if nothing is lost.",
    "query": "Print records of the local sink, one JSON object a line, in order of arrival.",
    "doctor": "Check settings, certificates, spools, the sink, and that no message is unaccounted for.",
    "settings": "Print all settings with their defaults, as TOML.",
    "api": "The API gateway.",
    "mesh": "The service mesh: App Mesh resources, run by Envoys.",
    "traffic": "Traffic shifted between versions of a service, as its metrics allow.",
    "pki": "A development CA: server, device and gateway certificates.",
    "tenants": "The tenants of a node. Changes are seen within a second.",
    "devices": "The devices of a node. Changes are seen within a second.",
    "keys": "API keys: of devices (add), and for calls of the API (issue).",
    "audit": "The audit log of the services.",
    "service": "The services behind the API gateway.",
    "spool": "The spools of a node.",
    "deadletters": "Messages that could not be delivered, kept for inspection.",
}
"""What each says of itself; the module of its name has it as `app`, and is loaded when it is asked for."""


class Commands(TyperGroup):
    """Loads a command when it is run: together they take seconds and a hundred megabytes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of a command, the command itself, and what is left of `args`."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, loaded(str(name)), rest


def loaded(name: str) -> Any:
    """Return a command."""
    command = typer.main.get_command(importlib.import_module(f"commands.{name}").app)
    command.name = name
    return command


app = typer.Typer(
    name="headworks",
    cls=Commands,
    help="Telemetry in over MQTT, HTTP and WebSocket; durable before it is acknowledged; out to Kinesis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _elsewhere() -> None:
    """Stand where a command is until `Commands` loads it."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_elsewhere)


def _version(show: bool) -> None:  # typer's callback
    if show:
        from ingest.app import is_compiled  # noqa: PLC0415  # which loads all of the gateway

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
