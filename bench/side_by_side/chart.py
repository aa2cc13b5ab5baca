"""The rates beside Mosquitto's as a picture for the README: SVG by hand, as bars are all that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from bench.side_by_side.cases import HEADWORKS, MOSQUITTO, Case
from bench.side_by_side.figures import Row

WIDTH: Final = 760
LEFT: Final = 330
BAR_MAX: Final = 300
BAR: Final = 15
STEP: Final = 46
TOP: Final = 52
STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px; fill: #57606a }
.headworks { fill: #0969da }
.mosquitto { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .headworks { fill: #4493f8 } .mosquitto { fill: #656c76 }
}"""


def compared(rows: Sequence[Row], cases: Sequence[Case]) -> list[tuple[str, str, float, float]]:
    """Return title, unit, our rate and Mosquitto's of each case that both have run."""
    rates = {(row.case, row.server): row.figures.get("per_s") for row in rows}
    both = []
    for case in cases:
        ours, theirs = rates.get((case.name, HEADWORKS)), rates.get((case.name, MOSQUITTO))
        if ours and theirs:
            both.append((case.title, case.unit, ours, theirs))
    return both


def svg(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    """Return the picture: two bars a case, the longer one as long as there is room."""
    both = compared(rows, cases)
    height = TOP + STEP * len(both)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style>",
        _legend("headworks", 0, "Headworks, on the disk before it is acknowledged"),
        _legend("mosquitto", LEFT, "Mosquitto, acknowledged from memory"),
    ]
    for index, (title, unit, ours, theirs) in enumerate(both):
        top = TOP + STEP * index
        parts += [
            f'<text x="0" y="{top + BAR}">{escape(title)}</text>',
            f'<text class="small" x="0" y="{top + 2 * BAR}">{unit}/s: {ours / theirs:.2f} times</text>',
            _bar("headworks", top, ours, ours / max(ours, theirs)),
            _bar("mosquitto", top + BAR + 1, theirs, theirs / max(ours, theirs)),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend(kind: str, left: int, text: str) -> str:
    return (
        f'<rect class="{kind}" x="{left}" y="8" width="12" height="12"/>'
        f'<text x="{left + 18}" y="19">{text}</text>'
    )


def _bar(kind: str, top: int, value: float, share: float) -> str:
    width = BAR_MAX * share
    return (
        f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{width:.0f}" height="{BAR}" rx="2"/>'
        f'<text class="small" x="{LEFT + width + 6:.0f}" y="{top + BAR - 3}">{value:,.0f}</text>'
    )
