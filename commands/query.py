"""`headworks query`: read back what the local sink has."""

from __future__ import annotations

import sqlite3
from typing import Annotated

import msgspec
import typer

from commands.common import ConfigOption, DataDirOption, data_dir_of, fail
from ingest.delivery.local import query as read
from runtime import clock

app = typer.Typer()


@app.command()
def query(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    device: Annotated[str | None, typer.Option(help="Only of this device.")] = None,
    stream: Annotated[str | None, typer.Option(help="Only of this stream.")] = None,
    since: Annotated[float | None, typer.Option(help="Only of the last so many seconds.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many, the newest.")] = 20,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print records of the local sink, one JSON object a line, in order of arrival."""
    path = data_dir_of(config, data_dir) / "local.db"
    if not path.exists():
        fail(f"there is no {path}: is the sink local, and has anything been delivered?")
    since_ms = None if since is None else int((clock.unix_s() - since) * 1000)
    try:
        found = read(path, tenant=tenant, device=device, stream=stream, since_ms=since_ms, limit=limit)
    except sqlite3.Error as error:
        fail(f"cannot read {path}: {error}")
    for record in found:
        typer.echo(msgspec.json.encode(record).decode())
