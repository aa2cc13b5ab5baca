"""What the operations of the data service work on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from services.data.consumer import Consumer
from services.data.reader import Reader
from services.data.tails import Tails


class DataLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that no part keeps for itself."""

    stream_deadline_s: float
    """For a caller to read a stream to its end."""


class DataService:
    """The parts of the service, open."""

    def __init__(
        self,
        *,
        reader: Reader,
        consumer: Consumer,
        tails: Tails,
        sink: Path | None,
        draining: asyncio.Event,
        limits: DataLimits,
    ) -> None:
        self.reader = reader
        self.consumer = consumer
        self.tails = tails
        self.sink = sink
        """The file of the sink `local`, where it is what is consumed."""
        self.draining = draining
        self.limits = limits
