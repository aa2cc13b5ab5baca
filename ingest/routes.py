"""From a topic to a route: whose telemetry it is, and what its stream takes.

Limits: a topic is `dt/{tenant}/{device}/{stream...}`; names are 1 to 128 of `A-Z a-z 0-9 . _ ~ : @ = -`,
a stream has at most `STREAM_LEVELS_MAX` levels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from ingest.outcome import Outcome

NAME_CHARACTERS_MAX: Final = 128
NAME: Final = re.compile(rf"[A-Za-z0-9._~:@=-]{{1,{NAME_CHARACTERS_MAX}}}")
NAME_RULE: Final = f"1 to {NAME_CHARACTERS_MAX} of A-Z a-z 0-9 . _ ~ : @ = -"
STREAM_LEVELS_MAX: Final = 16
TELEMETRY_ROOT: Final = "dt"


class StreamRule(msgspec.Struct, frozen=True):
    """What a stream takes. A rule named `a/b` holds for `a/b` and everything below it."""

    name: str
    raw: bool
    payload_bytes_max: int


class StreamRules:
    """Finds the rule of a stream: the longest name that matches, else the default."""

    def __init__(self, rules: Sequence[StreamRule], *, default: StreamRule) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._default = default

    def rule(self, stream: str) -> StreamRule:
        """Return the rule of `stream`."""
        name = stream
        while name:
            rule = self._rules.get(name)
            if rule is not None:
                return rule
            name = name.rpartition("/")[0]
        return self._default


class Address(msgspec.Struct, frozen=True):
    """Where a message belongs."""

    tenant: str
    device: str
    stream: str


def address_of_topic(topic: bytes) -> Address | Outcome:
    """Return the address a raw topic names, or BAD_TOPIC."""
    try:
        levels = topic.decode().split("/", 3)
    except UnicodeDecodeError:
        return Outcome.BAD_TOPIC
    if len(levels) != 4 or levels[0] != TELEMETRY_ROOT:
        return Outcome.BAD_TOPIC
    return address(levels[1], levels[2], levels[3])


def address(tenant: str, device: str, stream: str) -> Address | Outcome:
    """Return the address of these names, or BAD_TOPIC when one of them is not a name."""
    levels = stream.split("/")
    if len(levels) > STREAM_LEVELS_MAX:
        return Outcome.BAD_TOPIC
    if not all(map(NAME.fullmatch, (tenant, device, *levels))):
        return Outcome.BAD_TOPIC
    return Address(tenant, device, stream)
