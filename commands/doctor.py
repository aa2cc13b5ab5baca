"""`headworks doctor`: what is wrong with a node, and what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from commands.common import JsonOption, SetOption, settings_of
from ingest.delivery.kinesis.service import KinesisService, ServiceError
from ingest.settings import Settings
from ingest.spool import inspect
from ingest.spool.store import SpoolError
from ingest.worker import tls_files
from routing.tenancy.registry import Registry, RegistryError
from runtime import clock
from runtime.tls.material import TlsMaterialError, load

app = typer.Typer()

DAY_S = 86_400.0


class Finding(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    ok: bool
    detail: str


@app.command()
def doctor(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The node's settings (TOML).", envvar="HEADWORKS_CONFIG")
    ] = Path("var/headworks.toml"),
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check settings, certificates, spools, the sink, and that no message is unaccounted for."""
    settings = settings_of(config, overrides)
    findings = [Finding("settings", ok=True, detail=str(config))]
    findings += _certificates(settings)
    findings += _spools(Path(settings.node.data_dir))
    findings += _registry(Path(settings.node.data_dir) / "registry.db")
    findings.append(asyncio.run(_sink(settings)))
    if as_json:
        typer.echo(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]bad[/] "
            Console().print(f"{mark} {finding.check}: {finding.detail}", highlight=False)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def _certificates(settings: Settings) -> list[Finding]:
    if all(listener.tls == "off" for listener in settings.listeners):
        return []
    now_s = clock.unix_s()
    try:
        material = load(tls_files(settings), node_secret=b"", now_s=now_s)
    except TlsMaterialError as error:
        return [Finding("certificates", ok=False, detail=str(error))]
    days = (material.not_after_s - now_s) / DAY_S
    found = [Finding("certificates", ok=days > 7, detail=f"good for {days:.0f} days")]
    if material.crl_next_update_s is not None:
        days = (material.crl_next_update_s - now_s) / DAY_S
        detail = f"{len(material.revoked)} revoked; the list is good for {days:.0f} days"
        if days <= 0:
            detail += "; every client is refused until it is renewed (headworks pki crl)"
        found.append(Finding("revocation list", ok=days > 1, detail=detail))
    return found


def _spools(data_dir: Path) -> list[Finding]:
    try:
        states = inspect.status(data_dir)
        entries = inspect.ledger(data_dir)
    except SpoolError as error:
        return [Finding("spools", ok=False, detail=str(error))]
    waiting = sum(state.records for state in states)
    letters = sum(state.dead_letters for state in states)
    found = [Finding("spools", ok=True, detail=f"{waiting} records wait, {letters} dead letters")]
    wrong = [tenant for tenant, entry in entries.items() if not entry.balanced]
    accepted = sum(entry.accepted for entry in entries.values())
    detail = f"{accepted} accepted = delivered + spooled + dead-lettered, for {len(entries)} tenants"
    if wrong:
        detail = f"does not hold for {', '.join(wrong)}"
    found.append(Finding("conservation law", ok=not wrong, detail=detail))
    return found


def _registry(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    try:
        registry = Registry(path)
        detail = f"{len(registry.tenants())} tenants, {len(registry.keys(None))} API keys"
    except RegistryError as error:
        return [Finding("registry", ok=False, detail=str(error))]
    return [Finding("registry", ok=True, detail=detail)]


async def _sink(settings: Settings) -> Finding:
    sink = settings.sink
    if sink.kind != "kinesis":
        return Finding("sink", ok=True, detail=sink.kind)
    service = KinesisService(
        stream=sink.stream,
        region=sink.region,
        endpoint=sink.endpoint or None,
        deadline_s=sink.call_deadline_s,
        connections_max=1,
    )
    try:
        await service.open()
        shards = await service.list_shards()
    except ServiceError as error:
        return Finding("sink", ok=False, detail=f"stream {sink.stream}: {error}")
    finally:
        await service.close()
    return Finding("sink", ok=True, detail=f"stream {sink.stream} has {len(shards)} shards")
