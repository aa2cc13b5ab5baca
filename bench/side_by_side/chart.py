"""The rates beside Mosquitto's as a picture: SVG by hand, as a library would be heavier than its bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

import msgspec

from bench.side_by_side.cases import HEADWORKS, MOSQUITTO, Case
from bench.side_by_side.figures import Row

WIDTH: Final = 800
LEFT: Final = 390
BAR_MAX: Final = 340
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


class Pair(msgspec.Struct, frozen=True):
    """Rates of the two on one case."""

    case: Case
    ours: float
    theirs: float
    ratio: float


def pairs(rows: Sequence[Row], cases: Sequence[Case]) -> list[Pair]:
    """Return the rates of each case that both have run."""
    found = {(row.case, row.server): row for row in rows if "per_s" in row.figures}
    both = []
    for case in cases:
        ours, theirs = found.get((case.name, HEADWORKS)), found.get((case.name, MOSQUITTO))
        if ours is not None and theirs is not None and ours.rate_ratio is not None:
            both.append(Pair(case, ours.figures["per_s"], theirs.figures["per_s"], ours.rate_ratio))
    return both


def svg(rows: Sequence[Row], cases: Sequence[Case]) -> str:
    """Return the picture: two bars a case, the longer one as long as there is room."""
    both = pairs(rows, cases)
    height = TOP + STEP * len(both)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style>",
        _legend("headworks", 0, "Headworks, on the disk before it is acknowledged"),
        _legend("mosquitto", LEFT, "Mosquitto, acknowledged from memory"),
    ]
    for index, pair in enumerate(both):
        top, most = TOP + STEP * index, max(pair.ours, pair.theirs)
        times = f"{pair.case.unit}/s: {pair.ratio:.2f} times"
        parts += [
            f'<text x="0" y="{top + BAR}">{escape(pair.case.title)}</text>',
            f'<text class="small" x="0" y="{top + 2 * BAR}">{times}</text>',
            _bar("headworks", top, pair.ours, pair.ours / most),
            _bar("mosquitto", top + BAR + 1, pair.theirs, pair.theirs / most),
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
