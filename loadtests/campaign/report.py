"""The report: Locust's page with its plots, and the promise with the ledger before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from loadtests.million.promise import Part
from loadtests.plan import Plan

BODY: Final = "<body>"
STYLE: Final = """
<style>
  .promise { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 24px auto; padding: 0 24px; }
  .promise table { border-collapse: collapse; margin: 12px 0; }
  .promise td { padding: 3px 18px 3px 0; vertical-align: top; }
  .promise .kept { color: #1a7f37; } .promise .broken { color: #cf222e; font-weight: bold; }
  .promise code { font-size: 13px; }
</style>
"""


def write(folder: Path, name: str, plan: Plan, parts: Sequence[Part], figures: Mapping[str, Any]) -> Path:
    """Write `report.html` and return its path."""
    ours = section(name, plan, parts, figures)
    page = folder / "report.html"
    theirs = folder / "locust.html"
    html = theirs.read_text() if theirs.exists() else f"<!DOCTYPE html><html>{BODY}</body></html>"
    before, body, after = html.rpartition(BODY)
    page.write_text(f"{before}{body}\n{ours}\n{after}" if body else f"{ours}{html}")
    return page


def section(name: str, plan: Plan, parts: Sequence[Part], figures: Mapping[str, Any]) -> str:
    """Return the part of the page that is ours."""
    kept = all(part.kept for part in parts)
    rows = "".join(
        f'<tr><td class="{"kept" if part.kept else "broken"}">{"kept" if part.kept else "BROKEN"}</td>'
        f"<td>{escape(part.what)}</td><td>{escape(part.why)}</td></tr>"
        for part in parts
    )
    numbers = "".join(
        f"<tr><td><code>{escape(title)}</code></td><td>{escape(_line(values))}</td></tr>"
        for title, values in figures.items()
        if values
    )
    happens = "".join(
        f"<li>after {event.at_s:g} s: {event.what.replace('_', ' ')}"
        f"{f' for {event.for_s:g} s' if event.for_s else ''}</li>"
        for event in plan.events
    )
    return (
        f'{STYLE}<section class="promise"><h1>{escape(name)}: '
        f'<span class="{"kept" if kept else "broken"}">{"kept" if kept else "broken"}</span></h1>'
        f"<p>{escape(plan.what)}</p>{f'<ul>{happens}</ul>' if happens else ''}"
        f"<h2>The promise</h2><table>{rows}</table><h2>Figures</h2><table>{numbers}</table></section>"
    )


def _line(values: object) -> str:
    if isinstance(values, Mapping):
        return "   ".join(
            f"{name} {value:,}" if isinstance(value, int | float) else f"{name} {value}"
            for name, value in values.items()
        )
    return str(values)
