"""`headworks dev`: everything on one machine, with a simulated fleet."""

from __future__ import annotations


def dev() -> None:
    """Run a node with a fleet."""
