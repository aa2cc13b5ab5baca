"""`headworks audit`: check the audit log."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.common import USAGE, ConfigOption, DataDirOption, data_dir_of, fail
from routing.tenancy.audit import AuditLog

app = typer.Typer(help="The audit log of the services.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `verify` a sub-command though it is the only one."""


@app.command("verify")
def verify(
    head: Annotated[
        str, typer.Option(help="A head that was noted before, NUMBER:SEAL, which the log must still contain.")
    ] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check that no entry was changed, removed or put in, and print the head, to be noted elsewhere."""
    path = data_dir_of(config, data_dir) / "audit.db"
    if not path.exists():
        fail(f"there is no {path}")
    log = AuditLog(path)
    broken = log.verify()
    if broken is not None:
        fail(f"entry {broken} is not as it was written")
    if head:
        number, _, seal = head.partition(":")
        if not (number.isdecimal() and seal):
            fail(f"--head {head}: write it as NUMBER:SEAL", USAGE)
        if log.seal_of_entry(int(number)) != seal:
            fail(f"entry {number} has another seal than was noted, or is gone: the log was written anew")
    number_now, seal_now = log.head()
    typer.echo(f"{number_now}:{seal_now}")
