"""Where everything of a graph is drawn: in layers from who is called by nobody to who calls nobody.

Source: Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures" (1981):
layers by the longest way, then the order in each by the middle of its neighbours. The same graph is always
drawn alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from routing.mesh.graph.calls import Graph

WIDTH: Final = 190
HEIGHT: Final = 46
BETWEEN_LAYERS: Final = 210
BETWEEN_ROWS: Final = 58
MARGIN: Final = 40
SWEEPS: Final = 4


class Box(msgspec.Struct, frozen=True):
    """A proxy's place: its upper left corner."""

    x: float
    y: float

    @property
    def middle(self) -> float:
        """Its middle from top to bottom."""
        return self.y + HEIGHT / 2


class Layout(msgspec.Struct, frozen=True):
    """Boxes by the name of what is in them, and how large the drawing is."""

    boxes: Mapping[str, Box]
    width: float
    height: float


def laid_out(graph: Graph) -> Layout:
    """Return where everything is."""
    names = [*graph.gateways, *graph.nodes]
    calls = sorted({(each.caller, each.callee) for each in graph.calls})
    rows = _ordered(_layers(names, calls), calls)
    tallest = max((len(row) for row in rows), default=1)
    whole = tallest * (HEIGHT + BETWEEN_ROWS) - BETWEEN_ROWS
    boxes = {}
    for layer, row in enumerate(rows):
        top = MARGIN + (whole - (len(row) * (HEIGHT + BETWEEN_ROWS) - BETWEEN_ROWS)) / 2
        for place, name in enumerate(row):
            boxes[name] = Box(
                MARGIN + layer * (WIDTH + BETWEEN_LAYERS), top + place * (HEIGHT + BETWEEN_ROWS)
            )
    width = 2 * MARGIN + max(1, len(rows)) * (WIDTH + BETWEEN_LAYERS) - BETWEEN_LAYERS
    return Layout(boxes, width, 2 * MARGIN + whole)


def _layers(names: Sequence[str], calls: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the layers: everybody behind all who call it, calls that close a circle left aside."""
    callees: dict[str, list[str]] = {name: [] for name in names}
    for caller, callee in calls:
        callees[caller].append(callee)
    called = {callee for _, callee in calls}
    depth = dict.fromkeys(names, 0)
    for name, forward in _forward(sorted(names, key=lambda each: (each in called, each)), callees):
        for callee in forward:
            depth[callee] = max(depth[callee], depth[name] + 1)
    made: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in names:
        made[depth[name]].append(name)
    return [row for row in made if row]


def _forward(names: Sequence[str], callees: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Return everybody before whom they call, with those calls that close no circle."""
    found: list[tuple[str, list[str]]] = []
    forward: dict[str, list[str]] = {}
    done: set[str] = set()
    for start in names:
        way = [(start, iter(callees[start]))] if start not in forward else []
        for name, _ in way:
            forward[name] = []
        while way:
            name, left = way[-1]
            callee = next(left, None)
            if callee is None:
                way.pop()
                done.add(name)
                found.append((name, forward[name]))
            elif callee not in forward:
                forward[name].append(callee)
                forward[callee] = []
                way.append((callee, iter(callees[callee])))
            elif callee in done:
                forward[name].append(callee)
    return found[::-1]


def _ordered(rows: list[list[str]], calls: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the layers with each in the order in which its calls cross least, as far as sweeps find."""
    for sweep in range(SWEEPS):
        places = {name: place for row in rows for place, name in enumerate(row)}
        pairs = calls if sweep % 2 == 0 else [(callee, caller) for caller, callee in calls]
        near: dict[str, list[int]] = {}
        for one, other in pairs:
            near.setdefault(other, []).append(places[one])
        rows = [sorted(row, key=lambda name: (_middle(near.get(name), places[name]), name)) for row in rows]
    return rows


def _middle(places: Sequence[int] | None, own: int) -> float:
    return sum(places) / len(places) if places else own
