"""Accepts dead letters again that an operator marked, under their own tenant and device only."""

from __future__ import annotations

import asyncio
from typing import Final

from ingest.pipeline import Pipeline, Producer
from ingest.spool.reader import Reader, Replay
from ingest.spool.schema import DELETE_DEAD_LETTER, Booking
from ingest.spool.spool import Spool
from routing.tenancy.identity import Credential, Identity, Kind

BATCH: Final = 500


class Replayer:
    """Takes marked letters into the open group; a letter is deleted in the transaction that stores it."""

    def __init__(self, reader: Reader, pipeline: Pipeline, spool: Spool) -> None:
        self._reader = reader
        self._pipeline = pipeline
        self._spool = spool
        self._under_way: set[int] = set()

    async def poll(self) -> None:
        """Replay what is marked and was not taken yet; raises `SpoolError`."""
        marked = await asyncio.to_thread(self._reader.replays, BATCH)
        waiting = {letter.number for letter in marked}
        self._under_way &= waiting
        for letter in marked:
            if letter.number not in self._under_way and self._pipeline.has_room():
                self._replay(letter)

    def _replay(self, letter: Replay) -> None:
        """Submit one letter as its own device would; what is refused again stays a letter."""
        identity = Identity(
            tenant=letter.tenant, name=letter.device, kind=Kind.DEVICE, credential=Credential.CERTIFICATE
        )
        names = (letter.tenant, letter.device, letter.stream)
        producer = Producer(identity, can_refuse=True)
        taken = self._pipeline.readmit(producer, names, letter.payload, Booking(letter.booking))
        self._under_way.add(letter.number)
        if taken:
            self._spool.current.statements.append((DELETE_DEAD_LETTER, (letter.number,)))
            self._spool.touch()
        else:
            self._spool.store([("UPDATE dead_letters SET replay = 0 WHERE number = ?", (letter.number,))])
