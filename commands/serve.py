"""`headworks serve`: the production entry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.common import SetOption, fail, settings_of
from ingest import app as node

app = typer.Typer()


@app.command()
def serve(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The node's settings (TOML).", envvar="HEADWORKS_CONFIG")
    ],
    overrides: SetOption = None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C; exit code 0 after a clean drain."""
    settings = settings_of(config, overrides)
    try:
        code = node.serve(settings)
    except node.StartError as error:
        fail(str(error))
    raise typer.Exit(code)
