"""The curves of calls between boxes, spread over their sides, and room for what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from routing.mesh.graph.layout import BETWEEN_LAYERS, HEIGHT, WIDTH, Layout

Pair: TypeAlias = tuple[str, str]
"""Who calls, and who is called."""
Size: TypeAlias = tuple[float, float]
"""Width and height."""
SPREAD: Final = 0.6
"""Of the side of a box, how much of it curves end at."""
BEND_LEAST: Final = 60.0
BELOW: Final = 24.0
STEP: Final = 8.0
STEPS: Final = 24
HALVINGS: Final = 20


class Curve(msgspec.Struct, frozen=True):
    """A path of SVG, and the middle of its label."""

    path: str
    x: float
    y: float


def curves(layout: Layout, labels: Mapping[Pair, Size]) -> dict[Pair, Curve]:
    """Return the curves of calls, each with a label of some size that covers no other."""
    leaves = _spread(layout, list(labels), 0)
    comes = _spread(layout, list(labels), 1)
    taken = [(box.x, box.y, box.x + WIDTH, box.y + HEIGHT) for box in layout.boxes.values()]
    made = {}
    for pair, size in labels.items():
        start, end = layout.boxes[pair[0]], layout.boxes[pair[1]]
        x1, y1, x2, y2 = start.x + WIDTH, leaves[pair], end.x, comes[pair]
        if end.x > start.x:
            bend = max(BEND_LEAST, (x2 - x1) / 2)
            points = (x1, y1), (x1 + bend, y1), (x2 - bend, y2), (x2, y2)
            x, y = _where(points, x2 - BETWEEN_LAYERS / 2)
        else:  # back, below the boxes
            low = max(start.y, end.y) + HEIGHT + BELOW
            points = (x1, y1), (x1 + BEND_LEAST, low), (x2 - BEND_LEAST, low), (x2, y2)
            x, y = (x1 + x2) / 2, (y1 + 6 * low + y2) / 8
        y = _free(x, y, size, taken)
        taken.append((x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2))
        made[pair] = Curve("M{:g} {:g} C{:g} {:g} {:g} {:g} {:g} {:g}".format(*sum(points, ())), x, y)
    return made


def _spread(layout: Layout, pairs: Sequence[Pair], side: int) -> dict[Pair, float]:
    """Return the heights at which curves end on one side of their boxes, in the order of their other ends."""
    made = {}
    for name, box in layout.boxes.items():
        mine = [pair for pair in pairs if pair[side] == name]
        mine.sort(key=lambda pair: (layout.boxes[pair[1 - side]].y, pair))
        for place, pair in enumerate(mine):
            part = (place + 0.5) / len(mine) - 0.5
            made[pair] = box.middle + part * SPREAD * HEIGHT
    return made


def _where(points: Sequence[tuple[float, float]], wanted: float) -> tuple[float, float]:
    """Return the point of a curve from left to right at some x."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        part = (low + high) / 2
        low, high = (part, high) if _at(points, part, 0) < wanted else (low, part)
    return wanted, _at(points, low, 1)


def _at(points: Sequence[tuple[float, float]], part: float, axis: int) -> float:
    rest = 1 - part
    weights = rest**3, 3 * rest**2 * part, 3 * rest * part**2, part**3
    return sum(weight * point[axis] for weight, point in zip(weights, points, strict=True))


def _free(x: float, y: float, size: Size, taken: Sequence[tuple[float, float, float, float]]) -> float:
    """Return the nearest height at which a label covers nothing; the same one where there is none near."""
    half_w, half_h = size[0] / 2, size[1] / 2
    for step in range(STEPS):
        for sign in (1, -1):
            tried = y + sign * step * STEP
            if not any(
                x - half_w < right and x + half_w > left and tried - half_h < bottom and tried + half_h > top
                for left, top, right, bottom in taken
            ):
                return tried
    return y
