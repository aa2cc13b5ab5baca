"""What a person sees of a running node: the live table, the lines to copy, the sum at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from commands.demo.fleet import Tally
from commands.demo.node import TENANT, Ports
from commands.demo.platform import PlatformPorts
from ingest.spool.inspect import Entry


def live(status: Mapping[str, Any] | None, tally: Tally, *, accepted_per_s: float, elapsed_s: float) -> Panel:
    """Return the live table."""
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
    status = status or {}
    entries = status.get("ledger", {}).values()
    table.add_row("connections", f"{status.get('connections', 0):,}", "fleet", f"{tally.connected:,} devices")
    table.add_row("messages in", f"{accepted_per_s:,.0f}/s", "sent by the fleet", f"{tally.sent:,}")
    table.add_row(
        "accepted",
        f"{sum(entry['accepted'] for entry in entries):,}",
        "acknowledged",
        f"{tally.acknowledged:,}",
    )
    table.add_row(
        "delivered",
        f"{sum(entry['delivered'] for entry in entries):,}",
        "spooled",
        f"{sum(entry['spooled'] for entry in entries):,}",
    )
    refused = (
        ", ".join(f"{reason} {count:,}" for reason, count in status.get("refused", {}).items()) or "none"
    )
    dead = sum(entry["dead_lettered"] for entry in entries)
    table.add_row("refused", refused, "dead-lettered", f"{dead:,}")
    table.add_row(
        "acknowledged in",
        f"p50 {_ms(tally.quantile_s(0.5))}  p99 {_ms(tally.quantile_s(0.99))}",
        "in the gateway",
        f"p50 {_ms(status.get('acknowledge_p50_s'))}  p99 {_ms(status.get('acknowledge_p99_s'))}",
    )
    return Panel(table, title=f"Headworks, {elapsed_s:.0f} s", subtitle="Ctrl-C drains and adds up")


def line(status: Mapping[str, Any] | None, tally: Tally, *, accepted_per_s: float, elapsed_s: float) -> str:
    """Return the same in one line, where there is no terminal."""
    delivered = sum(entry["delivered"] for entry in (status or {}).get("ledger", {}).values())
    return (
        f"{elapsed_s:5.0f} s  {tally.connected} devices  {accepted_per_s:,.0f} messages/s  "
        f"sent {tally.sent:,}  acknowledged {tally.acknowledged:,}  delivered {delivered:,}  "
        f"p50 {_ms(tally.quantile_s(0.5))}  p99 {_ms(tally.quantile_s(0.99))}"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def hints(folder: Path, ports: Ports) -> str:
    """Return lines to copy and paste."""
    pki = folder / "pki"
    device = f"{pki}/devices/{TENANT}/device-1"
    payload = '{"ts": 1764000000000, "metrics": {"temperature": 21.5}}'
    return f"""\
Publish with a device's certificate:
  mosquitto_pub -p {ports.mqtts} --cafile {pki}/ca.crt --cert {device}.crt --key {device}.key \\
    -q 1 -i by-hand -t dt/{TENANT}/device-1/by-hand -m '{payload}'
  curl --cacert {pki}/ca.crt --cert {device}.crt --key {device}.key \\
    -H 'Content-Type: application/json' -d '{payload}' https://localhost:{ports.https}/v1/telemetry/by-hand
  npx wscat -c wss://localhost:{ports.https}/v1/stream -s headworks.v1.json --ca {pki}/ca.crt \\
    --cert {device}.crt --key {device}.key -w 2 -x '{{"id": 1, "stream": "by-hand", "data": {payload}}}'
Read it back:
  headworks query --config {folder}/headworks.toml --stream by-hand
"""


def api_hints(folder: Path, ports: PlatformPorts) -> str:
    """Return lines to copy and paste for the API gateway."""
    return f"""\
Manage devices through the API gateway, and read its documentation at https://localhost:{ports.api}/v1/docs:
  curl --cacert {folder}/pki/ca.crt -H "X-API-Key: $(cat {folder}/demo.key)" \\
    https://localhost:{ports.api}/v1/tenants/{TENANT}/devices
"""


def conservation(
    tally: Tally, before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> tuple[bool, RenderableType]:
    """Return whether the sum is right, and the sum: what this run added to the ledger."""

    def grew(field: str) -> int:
        return sum(int(getattr(entry, field)) for entry in after.values()) - sum(
            int(getattr(entry, field)) for entry in before.values()
        )

    accepted, delivered, dead = grew("accepted"), grew("delivered"), grew("dead_lettered")
    spooled = sum(entry.spooled for entry in after.values())
    left = sum(entry.spooled for entry in before.values())
    right = accepted + left == delivered + dead + spooled and not spooled and not dead
    right = right and accepted >= tally.acknowledged
    table = Table(title="Conservation", box=None, show_header=False, title_justify="left")
    table.add_row("sent by the fleet", f"{tally.sent:,}")
    table.add_row("acknowledged to the fleet", f"{tally.acknowledged:,}")
    table.add_row("accepted by the gateway", f"{accepted:,}")
    table.add_row("delivered", f"{delivered:,}")
    table.add_row("still spooled", f"{spooled:,}")
    table.add_row("dead-lettered", f"{dead:,}")
    verdict = "accepted = delivered: nothing is lost" if right else "accepted and delivered differ"
    return right, Group(table, f"[{'green' if right else 'red'}]{verdict}[/]")
