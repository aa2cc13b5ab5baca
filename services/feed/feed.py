"""The contract between a stream and a service that consumes it.

A feed gives batches of records, each with the checkpoint that is behind it. The consumer writes the
checkpoint in the transaction in which it writes what it made of the records, so whatever happens each batch
takes effect once. Delivery to the stream is at least once all the same: a record may be there twice, under
one id, and a consumer drops what it has had (`services.feed.seen`, `services.feed.progress`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from protocols.telemetry import Telemetry


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of the stream.

    `received_at` is Unix time in ms; `payload` is JSON, or base64 text where the stream is raw, which has
    no `telemetry`.
    """

    id: str
    tenant: str
    device: str
    stream: str
    received_at: int
    payload: str
    telemetry: Telemetry | None


class Batch(msgspec.Struct, frozen=True):
    """Records of one shard in their order; with `checkpoint` the shard goes on behind them.

    Without records it is a checkpoint to keep all the same: a shard has ended, or was rubbish.
    """

    shard: str
    records: Sequence[Record]
    checkpoint: str


Take = Callable[[Batch], Awaitable[None]]
"""When it returns, the batch and its checkpoint are durable. What it raises ends the feed."""


class Feed(Protocol):
    """A stream. Batches of one device come in order, and one batch at a time is with the consumer."""

    async def run(self, checkpoints: Mapping[str, str], take: Take) -> None:
        """Give batches from behind `checkpoints`, of each shard its last, until cancelled.

        A shard without a checkpoint begins with the oldest that is kept.
        """
