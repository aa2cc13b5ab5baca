"""A graph as SVG: boxes and curves, in the colours of the reader's own screen."""

from __future__ import annotations

import math
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from routing.mesh.graph.calls import Call, Graph, Traffic
from routing.mesh.graph.curves import Curve, curves
from routing.mesh.graph.layout import HEIGHT, WIDTH, Box, laid_out

NAME_CHARACTERS: Final = 24
LABEL_CHARACTERS: Final = 30
HEAD: Final = 56
FOOT: Final = 44
LINE: Final = 14
LETTER: Final = 6.0
"""How broad a letter of a label is, about."""
WARNING: Final = 0.01
BAD: Final = 0.05
STATES: Final = (
    ("idle", "no calls"),
    ("good", "below 1 % fail"),
    ("warning", "1 to 5 % fail"),
    ("bad", "5 % and more fail"),
)
STYLE: Final = """
svg{--page:#fff;--ink:#1c2733;--soft:#5b6b7b;--box:#f3f6f9;--edge:#c5d0da;--gate:#e6eefb;--idle:#a9b6c2;
--good:#2e8b57;--warning:#c98a00;--bad:#c8322b;font:13px system-ui,sans-serif}
@media (prefers-color-scheme:dark){svg{--page:#12181f;--ink:#e6edf3;--soft:#9fb0c0;--box:#1d2731;
--edge:#3a4856;--gate:#1c2c47;--idle:#5a6a7a;--good:#4cc38a;--warning:#f0b429;--bad:#ff6b61}}
.page{fill:var(--page)}text{fill:var(--ink)}.soft{fill:var(--soft);font-size:11px}
.title{font-size:18px;font-weight:600}.node{fill:var(--box);stroke:var(--edge)}
.gateway{fill:var(--gate);stroke:var(--edge)}.call{fill:none;stroke-linecap:round}
.idle{stroke:var(--idle);stroke-dasharray:4 5}.good{stroke:var(--good)}.warning{stroke:var(--warning)}
.bad{stroke:var(--bad)}.back{fill:var(--page);opacity:.85}
"""


def drawn(graph: Graph) -> str:
    """Return the graph as a document of SVG."""
    layout = laid_out(graph)
    width, height = max(layout.width, 720), layout.height + HEAD + FOOT
    svg = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        role="img",
    )
    SubElement(svg, "title").text = f"The mesh {graph.mesh}"
    SubElement(svg, "desc").text = _said(graph)
    SubElement(svg, "style").text = STYLE
    SubElement(svg, "rect", {"class": "page", "width": "100%", "height": "100%"})
    _text(svg, 40, 34, f"{graph.mesh}", "title")
    _text(svg, 40, 52, _summary(graph), "soft")
    body = SubElement(svg, "g", transform=f"translate(0 {HEAD})")
    said = {pair: _lines(calls, graph.traffic.get(pair)) for pair, calls in _pairs(graph).items()}
    found = curves(layout, {pair: _size(lines) for pair, lines in said.items()})
    for pair, curve in found.items():
        _call(body, curve, pair, said[pair], graph.traffic.get(pair))
    for name, box in layout.boxes.items():
        _box(body, name, box)
    for pair, curve in found.items():
        _label(body, curve, said[pair])
    _legend(svg, height - FOOT / 2)
    return tostring(svg, encoding="unicode") + "\n"


def state_of(traffic: Traffic | None) -> str:
    """Return how calls go, in a word."""
    if traffic is None or not traffic.per_s:
        return "idle"
    if traffic.failed >= BAD:
        return "bad"
    return "warning" if traffic.failed >= WARNING else "good"


def _pairs(graph: Graph) -> dict[tuple[str, str], list[Call]]:
    made: dict[tuple[str, str], list[Call]] = {}
    for each in graph.calls:
        made.setdefault((each.caller, each.callee), []).append(each)
    return made


def _lines(calls: list[Call], traffic: Traffic | None) -> list[str]:
    return [_by(calls), *([_counted(traffic)] if traffic is not None and traffic.per_s else [])]


def _size(lines: list[str]) -> tuple[float, float]:
    return max(len(each) for each in lines) * LETTER + 8, LINE * len(lines) + 4


def _call(
    body: Element, curve: Curve, pair: tuple[str, str], lines: list[str], traffic: Traffic | None
) -> None:
    kind = {"class": f"call {state_of(traffic)}", "d": curve.path, "stroke-width": f"{_width(traffic):.1f}"}
    line = SubElement(body, "path", kind)
    SubElement(line, "title").text = f"{_short(pair[0])} to {_short(pair[1])}: {', '.join(lines)}"


def _label(body: Element, curve: Curve, lines: list[str]) -> None:
    broad, tall = _size(lines)
    back = {"class": "back", "x": f"{curve.x - broad / 2:g}", "y": f"{curve.y - tall / 2:g}", "rx": "3"}
    SubElement(body, "rect", {**back, "width": f"{broad:g}", "height": f"{tall:g}"})
    for number, each in enumerate(lines):
        y = curve.y - tall / 2 + LINE * (number + 1) - 2
        _text(body, curve.x, y, each, "soft", anchor="middle")


def _box(body: Element, name: str, box: Box) -> None:
    kind = "gateway" if name.startswith("virtualGateway/") else "node"
    group = SubElement(body, "g")
    SubElement(group, "title").text = name
    place = {"x": f"{box.x:g}", "y": f"{box.y:g}", "width": f"{WIDTH}", "height": f"{HEIGHT}", "rx": "8"}
    SubElement(group, "rect", {"class": kind, **place})
    _text(group, box.x + 14, box.y + 20, _cut(_short(name), NAME_CHARACTERS))
    _text(group, box.x + 14, box.y + 36, "virtual gateway" if kind == "gateway" else "virtual node", "soft")


def _legend(svg: Element, y: float) -> None:
    x = 40.0
    for state, said in STATES:
        d = f"M{x:g} {y:g} h28"
        SubElement(svg, "path", {"class": f"call {state}", "d": d, "stroke-width": "3"})
        _text(svg, x + 36, y + 4, said, "soft")
        x += 60 + len(said) * 6.2


def _text(parent: Element, x: float, y: float, said: str, kind: str = "", anchor: str = "") -> None:
    more = {"class": kind} if kind else {}
    if anchor:
        more["text-anchor"] = anchor
    SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", **more}).text = said


def _width(traffic: Traffic | None) -> float:
    """Return how broad a line is: one more pixel and a half for ten times the calls."""
    return 1.5 + 1.5 * math.log10(1 + traffic.per_s) if traffic is not None else 1.5


def _by(calls: list[Call]) -> str:
    names = [f"{each.service} {each.share:.0%}" if each.share < 1 else each.service for each in calls]
    return _cut(", ".join(names), LABEL_CHARACTERS)


def _counted(traffic: Traffic) -> str:
    said = f"{_figure(traffic.per_s)}/s"
    if traffic.failed:
        said += f", {_figure(100 * traffic.failed)} % fail"
    return said if traffic.p99_ms is None else f"{said}, p99 {_figure(traffic.p99_ms)} ms"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # three digits


def _summary(graph: Graph) -> str:
    counts = ("gateway", len(graph.gateways)), ("node", len(graph.nodes)), ("call", len(_pairs(graph)))
    size = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts)
    if not graph.seconds:
        return size
    whole = sum(each.per_s for each in graph.traffic.values())
    return f"{size}; {_figure(whole)} requests a second, counted for {graph.seconds:g} s"


def _said(graph: Graph) -> str:
    """Return the graph in words, for who cannot see it."""
    lines = []
    for (caller, callee), calls in _pairs(graph).items():
        traffic = graph.traffic.get((caller, callee))
        counted = f": {_counted(traffic)}" if traffic is not None and traffic.per_s else ""
        lines.append(f"{_short(caller)} calls {_short(callee)} by {_by(calls)}{counted}.")
    return " ".join(lines)


def _short(name: str) -> str:
    return name.partition("/")[2]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
