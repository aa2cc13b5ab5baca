"""`headworks settings`: every setting with its default."""

from __future__ import annotations

import msgspec
import typer

from ingest.settings import Listener, Settings, Stream
from routing.limits.plan import Plan

app = typer.Typer()


@app.command()
def settings() -> None:
    """Print all settings with their defaults, as TOML."""
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            _section(f"[{field.name}]", field.type)
    _section("[[listeners]]  # one or more", Listener)
    _section("[limits.default]  # and one a further plan", Plan)
    _section("[[streams]]  # none or more", Stream)


def _section(head: str, struct: type[msgspec.Struct]) -> None:
    typer.echo(head)
    for field in msgspec.structs.fields(struct):
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        comment = "# required: " if default is msgspec.NODEFAULT else ""
        value = "..." if comment else msgspec.json.encode(default).decode()
        typer.echo(f"{comment}{field.name} = {value}")
    typer.echo()
