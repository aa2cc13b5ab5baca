"""`headworks deadletters`: what was refused for its content, or by the sink for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from commands.common import REFUSED, ConfigOption, DataDirOption, JsonOption, data_dir_of, fail, show
from ingest.spool import inspect
from ingest.spool.store import SpoolError

app = typer.Typer(help="Messages that could not be delivered, kept for inspection.", no_args_is_help=True)
NameArgument = Annotated[str | None, typer.Argument(help="One letter, as `list` names it: worker-0/17.")]
TenantOption = Annotated[str | None, typer.Option(help="Only of this tenant.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only with this reason.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_letters(
    tenant: TenantOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, the newest first."""
    try:
        rows = inspect.letters(data_dir_of(config, data_dir), tenant=tenant, reason=reason, limit=limit)
    except SpoolError as error:
        fail(str(error))
    show(rows, ["name", "tenant", "device", "stream", "reason", "detail", "accepted"], as_json=as_json)


@app.command("show")
def show_letter(
    name: Annotated[str, typer.Argument(help="As `list` names it: worker-0/17.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write the payload of one dead letter to standard output, as it came."""
    try:
        payload = inspect.payload(data_dir_of(config, data_dir), name)
    except SpoolError as error:
        fail(str(error))
    sys.stdout.buffer.write(payload)


@app.command("replay")
def replay(
    name: NameArgument = None,
    tenant: TenantOption = None,
    reason: ReasonOption = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Have letters accepted again, under their own tenant and device, within seconds."""
    _need_a_choice(name, tenant, reason, everything=everything)
    try:
        marked, cut = inspect.mark_for_replay(
            data_dir_of(config, data_dir), name=name, tenant=tenant, reason=reason
        )
    except SpoolError as error:
        fail(str(error))
    typer.echo(f"{marked} marked; a running node takes them now, a stopped one when it starts")
    if cut:
        why = f"{cut} cannot be replayed: only their beginning was kept (spool.refused_kept_bytes_max)"
        typer.echo(f"headworks: {why}", err=True)
        raise typer.Exit(0 if marked else REFUSED)


@app.command("purge")
def purge(
    name: NameArgument = None,
    tenant: TenantOption = None,
    reason: ReasonOption = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete letters for good."""
    _need_a_choice(name, tenant, reason, everything=everything)
    try:
        purged = inspect.purge(data_dir_of(config, data_dir), name=name, tenant=tenant, reason=reason)
    except SpoolError as error:
        fail(str(error))
    typer.echo(f"{purged} deleted")


def _need_a_choice(*choices: str | None, everything: bool) -> None:
    if not everything and not any(choices):
        fail("say which: a letter, --tenant, --reason, or --all", 2)
