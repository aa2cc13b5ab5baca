"""A feed out of a Kinesis stream: a reader a shard, parents before children.

- A shard is read at most every `poll_s`, since the service takes five reads a second of a shard, with
  `records_max` Kinesis records at once, of together 10 MiB at most.
- Batches of all shards are given one at a time, and `READS_MAX` of them are in memory.
- Shards are listed every `LIST_S`, and when one ends.
- Whatever fails is tried again, with back-off. A checkpoint from before what the stream keeps begins with the
  oldest record, which is counted as a gap and said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from routing.resilience.backoff import full_jitter_s
from services.feed.decoding import record_of
from services.feed.feed import Batch, Record, Take
from services.feed.kinesis.deaggregation import user_records
from services.feed.kinesis.lineage import END, readable
from services.feed.kinesis.service import BEYOND, EXPIRED, THROTTLES, Got, ReadingService, ServiceError
from services.feed.metrics import FeedMetrics, Trouble

LIST_S: Final = 30.0
LIST_AGAIN_S: Final = 1.0
READS_MAX: Final = 8
BACKOFF_BASE_S: Final = 0.25
BACKOFF_MAX_S: Final = 10.0


class KinesisFeed:
    """The stream of `service`, which is open."""

    def __init__(
        self,
        service: ReadingService,
        *,
        poll_s: float,
        records_max: int,
        metrics: FeedMetrics,
        random: Callable[[], float],
        log: Any,
    ) -> None:
        self._service = service
        self._poll_s = poll_s
        self._records_max = records_max
        self._metrics = metrics
        self._random = random
        self._log = log
        self._ended: set[str] = set()
        self._listed: set[str] = set()
        self._one_ended = asyncio.Event()
        self._turn = asyncio.Lock()
        self._room = asyncio.Semaphore(READS_MAX)

    async def run(self, checkpoints: Mapping[str, str], take: Take) -> None:
        """Give batches until cancelled."""
        self._ended = {shard for shard, checkpoint in checkpoints.items() if checkpoint == END}
        reading: set[str] = set()
        failures = 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._one_ended.clear()
                try:
                    shards = await self._service.shards()
                except ServiceError as error:
                    failures += 1
                    await self._wait(error, failures, shard="")
                    continue
                failures = 0
                self._listed = {shard.shard_id for shard in shards}
                for shard in readable(shards, self._ended):
                    if shard not in reading:
                        reading.add(shard)
                        tasks.create_task(self._read(shard, checkpoints.get(shard, ""), take))
                try:
                    async with asyncio.timeout(LIST_S):
                        await self._one_ended.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(LIST_AGAIN_S)

    async def _read(self, shard: str, after: str, take: Take) -> None:
        """Read a shard to its end, or until the stream does not have it any more."""
        iterator: str | None = None
        failures = 0
        self._metrics.behind(shard, 0.0)
        while not failures or shard in self._listed:
            try:
                if iterator is None:
                    iterator = await self._service.iterator(shard, after)
                async with self._room:
                    got = await self._service.records(iterator, self._records_max)
                    after = await self._give(shard, got, after, take)
            except ServiceError as error:
                iterator = None  # whatever it was, a new one is good
                if after and error.code in BEYOND:
                    self._metrics.missed(0)
                    self._log.warning("feed_missed", shard=shard)
                    after = ""
                failures += 1
                await self._wait(error, failures, shard)
                continue
            failures = 0
            if got.iterator is None:
                break
            iterator = got.iterator
            await asyncio.sleep(self._poll_s)
        self._metrics.over(shard)
        self._ended.add(shard)
        self._one_ended.set()

    async def _give(self, shard: str, got: Got, after: str, take: Take) -> str:
        """Give what a read gave, if it moves the checkpoint; return the sequence number it is behind."""
        self._metrics.behind(shard, got.behind_ms / 1000)
        if got.records:
            after = got.records[-1][0]
        elif got.iterator is not None:
            return after
        batch = Batch(shard, self._decoded(got), END if got.iterator is None else after)
        async with self._turn:
            await take(batch)
        return after

    def _decoded(self, got: Got) -> list[Record]:
        found = [record_of(user) for _, data in got.records for user in user_records(data)]
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            self._metrics.malformed(len(found) - len(records))
        return records

    async def _wait(self, error: ServiceError, failures: int, shard: str) -> None:
        if error.code in EXPIRED:
            self._metrics.trouble(Trouble.EXPIRED)
        else:
            throttled = error.code in THROTTLES
            self._metrics.trouble(Trouble.THROTTLED if throttled else Trouble.UNAVAILABLE)
        if failures == 1:
            self._log.info("feed_tries_again", shard=shard, why=str(error))
        await asyncio.sleep(
            full_jitter_s(failures, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_MAX_S, random=self._random)
        )
