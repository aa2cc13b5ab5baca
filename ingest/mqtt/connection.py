"""Drives one MQTT session over a transport: bytes in, publishes to the pipeline, answers out.

- All connections of a loop share one receive buffer; it is consumed inside `buffer_updated`.
- Answers to QoS 1 and 2 publishes leave by the spool, after the fsync.
- While the spool has no room, the publishes of one read are held and reading is paused.
"""

from __future__ import annotations

import enum
from typing import Final

from ingest.outcome import Outcome

CLOSES_IN_3: Final = frozenset({Outcome.NOT_AUTHORISED, Outcome.BAD_TOPIC, Outcome.SUSPENDED})
"""Refusals for which MQTT 3.1.1 has no word, so that it closes (MQTT-3.3.5-2)."""


class Phase(enum.Enum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
