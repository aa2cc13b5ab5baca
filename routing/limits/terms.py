"""What a tenant and its devices may send, and what happens to more."""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Policy(enum.Enum):
    """What happens to messages over a limit."""

    PAUSE = "pause"
    """Taken, and reading pauses until the debt is paid; in HTTP, which cannot pause, 429 until it is."""
    REFUSE = "refuse"
    """Refused: 0x97 in MQTT 5, 429 in HTTP; MQTT 3.1.1 cannot refuse, so it pauses."""
    SHED = "shed"
    """QoS 0 is dropped and counted; QoS 1 and 2 pause."""


class Over(enum.IntEnum):
    """Whose limit a charge went over."""

    NOBODY = 0
    DEVICE = 1
    TENANT = 2


NOBODY: Final = Over.NOBODY
PAUSE: Final = Policy.PAUSE
REFUSE: Final = Policy.REFUSE
SHED: Final = Policy.SHED


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one device, or of one tenant; 0 means unlimited. `burst_s` is seconds of rate."""

    messages_per_s: float
    bytes_per_s: float
    burst_s: float
    connections_max: int


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant agreed to."""

    tenant: Rates
    device: Rates
    policy: Policy
