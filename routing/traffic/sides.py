"""Whose clusters are the canary's and the baseline's, by the names that callers' proxies have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from routing.traffic.counts import Counts

NUMBERED: Final = "(http|http2|grpc)_[0-9]+(_.*)?"
"""Protocol, port, and the backend whose policy a cluster is of."""


class Sides(msgspec.Struct, frozen=True):
    """The nodes of a mesh that are compared."""

    mesh: str
    canary: str
    baseline: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """A regular expression of the names of all their clusters, which RE2 and Python read alike."""
        return self._of((self.canary, *self.baseline))

    @property
    def beginnings(self) -> str:
        """A regular expression of how these names begin, up to a dot."""
        begin = [_escaped(f"cds_egress_{self.mesh}_{node}_".split(".")[0]) for node in self._nodes]
        return f"({'|'.join(begin)}).*"

    def counted(self, growth: Mapping[str, Counts]) -> tuple[Counts, Counts]:
        """Return the counts of the canary and of the baseline."""
        return self._sum((self.canary,), growth), self._sum(self.baseline, growth)

    @property
    def _nodes(self) -> tuple[str, ...]:
        return (self.canary, *self.baseline)

    def _of(self, nodes: tuple[str, ...]) -> str:
        names = "|".join(_escaped(node) for node in nodes)
        return f"cds_egress_{_escaped(self.mesh)}_({names})_{NUMBERED}"

    def _sum(self, nodes: tuple[str, ...], growth: Mapping[str, Counts]) -> Counts:
        own = re.compile(self._of(nodes))
        return sum((each for name, each in growth.items() if own.fullmatch(name)), Counts())


def _escaped(name: str) -> str:
    """Return a name for a regular expression that may stand in a string of PromQL: no backslash."""
    return re.sub(r"[^A-Za-z0-9_-]", ".", name)
