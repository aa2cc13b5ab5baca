"""The wills of clients that are gone: sent at once, after a delay, or not at all (MQTT 5, 3.1.3.2.2).

A will waits at most for the end of its session. At most `wills_max` wait, for their delay or for room in the
spool; of more, those with a delay are sent at once, and those without room are counted as refused.
"""

from __future__ import annotations

import asyncio

from ingest.outcome import Outcome
from ingest.pipeline import Pipeline, Producer
from ingest.spool.spool import Spool
from protocols.mqtt.packets import Will
from runtime import clock


class Wills:
    """The wills of one worker that have not been sent yet, by the key of their session."""

    def __init__(
        self, *, loop: asyncio.AbstractEventLoop, pipeline: Pipeline, spool: Spool, wills_max: int
    ) -> None:
        self._loop = loop
        self._pipeline = pipeline
        self._spool = spool
        self._wills_max = wills_max
        self._delayed: dict[bytes, tuple[asyncio.TimerHandle, Producer, Will]] = {}
        self._without_room = 0

    def leave(self, key: bytes, producer: Producer, will: Will, session_expiry_s: int) -> None:
        """Send a will when its delay or its session is over."""
        delay_s = min(will.delay_s, session_expiry_s)
        if not delay_s or len(self._delayed) >= self._wills_max:
            self.send(producer, will)
            return
        self._delayed[key] = (self._loop.call_later(delay_s, self._due, key), producer, will)

    def _due(self, key: bytes) -> None:
        _, producer, will = self._delayed.pop(key)
        self.send(producer, will)

    def client_is_back(self, key: bytes, *, resumed: bool) -> None:
        """Drop the will that waits if the session is `resumed`; it has ended otherwise, so send it."""
        entry = self._delayed.pop(key, None)
        if entry is not None:
            entry[0].cancel()
            if not resumed:
                self.send(entry[1], entry[2])

    def send(self, producer: Producer, will: Will) -> None:
        """Publish a will as its client would have."""
        publishes = [(will.topic, will.payload, will.qos, b"")]
        if self._pipeline.has_room():
            self._pipeline.publish(producer, publishes, clock.monotonic_s())
        elif self._without_room < self._wills_max:
            self._without_room += 1
            self._spool.when_room(lambda: self._send_now(producer, will))
        else:
            self._pipeline.refuse_all(producer, publishes, Outcome.SPOOL_FULL)

    def _send_now(self, producer: Producer, will: Will) -> None:
        self._without_room -= 1
        self.send(producer, will)

    def send_all(self) -> None:
        """Send the wills that still wait, since this worker will not be there when they are due."""
        for key in list(self._delayed):
            self._delayed[key][0].cancel()
            self._due(key)
