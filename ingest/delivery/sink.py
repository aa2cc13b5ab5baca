"""The small interface behind which every sink stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ingest.records import Group


class Poison(msgspec.Struct, frozen=True):
    """One record that the sink will never take; it goes to the dead letters."""

    index: int
    tenant: str
    device: str
    stream: str
    received_at_ms: int
    reason: str
    envelope: bytes


class SinkState(msgspec.Struct, frozen=True):
    """What operators see of a sink. `open_circuits` are shard ids or "stream"."""

    ready: bool
    pending_records: int
    pending_bytes: int
    open_circuits: tuple[str, ...] = ()


Settled = Callable[[int, Sequence[Poison]], None]
"""Called as `settled(group_number, poison)` once every record of a group is delivered or in `poison`.

Called on the event loop, once a group, in any order of groups.
"""


class Sink(Protocol):
    """Takes groups in order and says when each is done.

    A sink keeps the order of each device, over refusals and retries. It never gives up on a record
    except by naming it in `poison`. It holds at most `pending_bytes_max` (a constructor argument).
    """

    async def put(self, group: Group) -> None:
        """Take `group`; return at once while there is room, else wait for room."""

    async def run(self) -> None:
        """Deliver until cancelled. Cancellation loses nothing: what is not settled stays in the spool."""

    def state(self) -> SinkState:
        """Return what operators see; cheap."""
