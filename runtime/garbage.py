"""How often a server looks for cycles of garbage: seldom, and not in what it was started with.

What a request or a message makes dies with it, without a cycle. Python's defaults would look through all that
was imported, half a million objects, several times a second under load, for tens of milliseconds each.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (50_000, 20, 50)
"""New containers before the youngest generation is looked at (the default is 700), then of the older two."""


def settle() -> None:
    """Leave what there is alone from now on; call it when a process has been started and before it serves."""
    gc.set_threshold(*THRESHOLDS)
    gc.collect()
    gc.freeze()
