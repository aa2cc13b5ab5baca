"""What every balancing policy promises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from routing.balancing.host import Host

Random = Callable[[], float]
"""Gives a number from 0 to below 1."""


class Policy(Protocol):
    """Chooses one of a set that changes seldom."""

    def renew(self, hosts: Sequence[Host]) -> None:
        """Choose from `hosts`, each of a weight above 0, from now on."""

    def choose(self, key: str, avoid: Collection[Host], random: Random) -> Host | None:
        """Return who gets the next request: not one of `avoid` if there is another; None without hosts.

        `key` is what a consistent hash is of.
        """
