"""`headworks spool`: what waits for delivery."""

from __future__ import annotations

import typer

from commands.common import ConfigOption, DataDirOption, JsonOption, data_dir_of, fail, show
from ingest.spool import inspect
from ingest.spool.store import SpoolError

app = typer.Typer(help="The spools of a node.", no_args_is_help=True)


@app.callback()
def _spool() -> None:
    """Keep `status` a sub-command although it is the only one."""


@app.command("status")
def status(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show what each worker's spool holds."""
    try:
        rows = inspect.status(data_dir_of(config, data_dir))
    except SpoolError as error:
        fail(str(error))
    show(rows, ["worker", "groups", "records", "bytes", "oldest_ms", "dead_letters"], as_json=as_json)
