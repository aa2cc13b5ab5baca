"""The sink `kinesis`: groups in, aggregated PutRecords out, each record accounted for.

- Each shard has a lane with one record in flight; calls carry the records of several lanes.
- HTTP 200 is not success: each record has its own result, and only refused ones go again.
- Consumers drop user records that arrive in a shard whose range they are not in. A record that landed in
  another shard than was meant (a reshard) makes the map be read again, and what would be dropped goes again.
- A time-out may have written: records then go again with the same ids.

Memory is bounded by `pending_bytes_max`, of which only what is not in the stream counts. While a shard takes
nothing its own records fill that window, and when it is full the other shards wait too; nothing is lost,
since the spool keeps what is not settled.

A map that is merely old is read again beside the deliveries, which stop only for one that is wrong.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ingest.delivery.envelope import envelopes
from ingest.delivery.kinesis.aggregation import RECORD_OVERHEAD
from ingest.delivery.kinesis.lane import Lane
from ingest.delivery.kinesis.parts import Origin, Part, held_bytes
from ingest.delivery.kinesis.service import THROTTLES, Entry, Result, ServiceError
from ingest.delivery.kinesis.shard_map import Shard, ShardMap, partition_key
from ingest.delivery.sink import Poison, Settled, SinkState
from ingest.limits import KinesisLimits
from ingest.records import Group
from routing.resilience.breaker import Breaker, State
from routing.resilience.concurrency import AdaptiveConcurrency
from runtime import clock

CALL_RECORDS_MAX: Final = 500
CALL_BYTES_MAX: Final = 5 << 20
RECORD_LIMIT: Final = 1 << 20
"""The service's limit on a record with its partition key; what is larger is poison."""
OPEN: Final = State.OPEN
SURELY_SOUND_BYTES: Final = RECORD_LIMIT // 2
"""Parts of up to this size are under the limit whatever their key."""


class Service(Protocol):
    """What the sink needs of Kinesis (`ingest.delivery.kinesis.service`)."""

    async def open(self) -> None:
        """Make ready."""

    async def close(self) -> None:
        """Let go."""

    async def put_records(self, entries: Sequence[Entry]) -> list[Result]:
        """Put entries; raises `ServiceError`."""

    async def list_shards(self) -> list[Shard]:
        """Return the shards; raises `ServiceError`."""


class SinkEvents(Protocol):
    """What the sink reports (`ingest.events.Events`)."""

    def sink_called(self, result: str, refused: int = 0) -> None:
        """Count a call."""

    def sink_trouble(self, event: str, detail: str) -> None:
        """Say what is wrong."""


class _Pending:
    """A group that is not settled: how many records are left, and which were poison."""

    __slots__ = ("left", "poison")

    def __init__(self, left: int) -> None:
        self.left = left
        self.poison: list[Poison] = []


class KinesisSink:
    """Delivers to one stream."""

    def __init__(
        self,
        service: Service,
        *,
        settled: Settled,
        events: SinkEvents,
        limits: KinesisLimits,
        random: Callable[[], float],
    ) -> None:
        self._service = service
        self._settled = settled
        self._events = events
        self._limits = limits
        self._random = random
        self._map: ShardMap | None = None
        self._map_due_s = 0.0
        self._map_failed = False
        self._checking_map = False
        self._stale = False
        self._misplaced: list[tuple[str, Part]] = []
        self._lanes: dict[str, Lane] = {}
        self._unrouted: list[Part] = []
        self._pending: dict[int, _Pending] = {}
        self._pending_bytes = 0
        self._concurrency = AdaptiveConcurrency(limit_max=limits.concurrency_max)
        self._breaker = Breaker(failures_max=3, open_s=0.5, open_s_max=10.0)
        self._called_s = float("-inf")
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, group: Group) -> None:
        """Take a group; wait while too much is pending.

        Hot: guarded by bench/test_delivery.py::test_put.
        """
        while self._pending_bytes >= self._limits.pending_bytes_max:
            self._room.clear()
            await self._room.wait()
        pending = _Pending(sum(run.count for run in group.runs))
        self._pending[group.number] = pending
        number = group.number
        for run, first, made in envelopes(group):
            key = partition_key(run.tenant, run.device)
            size = len(made[0]) if len(made) == 1 else sum(map(len, made))
            origin = Origin(run.tenant, run.device, run.stream, run.received_at_ms)
            part = Part(number, first, key, made, size, held_bytes(size, len(made)), origin)
            if size <= SURELY_SOUND_BYTES:
                self._pending_bytes += part.held
                self._route(part)
                continue
            for sound in self._without_poison(part):
                self._pending_bytes += sound.held
                self._route(sound)
        self._settle_if_done(group.number, pending)
        self._wake.set()

    def _without_poison(self, part: Part) -> list[Part]:
        """Take out the records that the service will never take, and return the rest."""
        room = RECORD_LIMIT - 2 * len(part.key) - RECORD_OVERHEAD - 64
        if part.bytes <= room:
            return [part]
        sound: list[Part] = []
        for position, envelope in enumerate(part.envelopes):
            index = part.first_index + position
            size = len(envelope)
            one = Part(part.group, index, part.key, [envelope], size, held_bytes(size, 1), part.origin)
            if one.bytes > room:
                self._poison(one, "too_large_for_the_stream")
            else:
                sound.append(one)
        return sound

    def _poison(self, part: Part, reason: str) -> None:
        """Give up on the one record of `part`."""
        pending, origin = self._pending[part.group], part.origin
        pending.left -= 1
        pending.poison.append(
            Poison(
                part.first_index,
                origin.tenant,
                origin.device,
                origin.stream,
                origin.received_at_ms,
                reason,
                part.envelopes[0],
            )
        )

    def _route(self, part: Part) -> None:
        if self._map is None or self._stale:
            self._unrouted.append(part)
        else:
            self._lanes[self._map.shard_of(part.key)].append(part)

    def _let_go(self, part: Part) -> None:
        """Make room: `part` is in the stream, or given up."""
        self._pending_bytes -= part.held
        self._room.set()

    def _settle_if_done(self, number: int, pending: _Pending) -> None:
        if pending.left == 0:
            del self._pending[number]
            self._settled(number, pending.poison)

    # The dispatch loop.

    async def run(self) -> None:
        """Deliver until cancelled."""
        await self._service.open()
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    wait_s = await self._dispatch(calls)
                    try:
                        async with asyncio.timeout(wait_s):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    self._wake.clear()
        finally:
            await self._service.close()

    async def _dispatch(self, calls: asyncio.TaskGroup) -> float | None:
        """Start the calls that may start; return when to look again, None for at the next event."""
        now_s = clock.monotonic_s()
        if self._map is None or self._stale:
            if self._concurrency.under_way:
                return None  # lanes change only when nothing is in flight, which keeps the order
            if not await self._read_map():
                return self._limits.map_retry_s
        elif now_s >= self._map_due_s and not self._checking_map:
            self._checking_map = True
            calls.create_task(self._check_map(self._map))
        while self._concurrency.has_room():
            ready, wait_s = self._ready(now_s)
            if not ready:
                return wait_s
            linger_s = self._called_s + self._limits.linger_s - now_s
            if linger_s > 0.0 and not any(lane.is_full for lane in ready):
                return linger_s if wait_s is None else min(linger_s, wait_s)
            if not self._breaker.allows(now_s):
                return max(0.01, self._breaker.due_s(now_s)) if self._breaker.state is OPEN else None
            batch = self._fill(ready, now_s)
            if not batch:
                return 0.05
            self._concurrency.started()
            self._called_s = now_s
            calls.create_task(self._call(batch))
        return None

    def _ready(self, now_s: float) -> tuple[list[Lane], float | None]:
        ready: list[Lane] = []
        wait_s: float | None = None
        for lane in self._lanes.values():
            due_s = lane.due_s(now_s)
            if due_s is None:
                continue
            if due_s <= 0.0:
                ready.append(lane)
            else:
                wait_s = due_s if wait_s is None else min(wait_s, due_s)
        ready.sort(key=lambda lane: lane.taken_s)  # who has waited longest, so that all get their turn
        return ready, wait_s

    def _fill(self, ready: list[Lane], now_s: float) -> list[tuple[Lane, Entry]]:
        """Take one record of each ready lane, as many as one call may carry."""
        batch: list[tuple[Lane, Entry]] = []
        size = 0
        for lane in ready:
            if batch and lane.suspect:
                continue  # in a call of its own, to find the record that the service will never take
            if len(batch) >= CALL_RECORDS_MAX or size + RECORD_LIMIT > CALL_BYTES_MAX:
                break
            taken = lane.take(now_s)
            if taken is not None:
                batch.append((lane, Entry(*taken)))
                size += len(taken[0]) + len(taken[1])
                if lane.suspect:
                    break
        return batch

    async def _call(self, batch: list[tuple[Lane, Entry]]) -> None:
        trouble = True
        try:
            results = await self._service.put_records([entry for _, entry in batch])
            trouble = self._judge(batch, results)
        except ServiceError as error:
            trouble = error.retriable
            self._call_failed(batch, error)
        finally:
            self._concurrency.ended(trouble=trouble)
            self._wake.set()

    def _judge(self, batch: list[tuple[Lane, Entry]], results: list[Result]) -> bool:
        """Settle, or send again, record by record; return whether the service was in trouble."""
        self._breaker.succeeded()
        now_s = clock.monotonic_s()
        refused = 0
        for (lane, _), result in zip(batch, results, strict=True):
            if result.error is not None:
                refused += 1
                lane.refused(now_s, self._random)
                if result.error not in THROTTLES:
                    self._events.sink_trouble("record_refused", result.error)
            elif result.shard_id == lane.shard_id:
                self._done(lane.delivered())
            else:
                self._landed_elsewhere(lane, str(result.shard_id))
        self._events.sink_called("partial" if refused else "ok", refused)
        return refused > 0

    def _landed_elsewhere(self, lane: Lane, shard_id: str) -> None:
        """Remember where a record landed, to be judged by the next map."""
        self._stale = True
        for part in lane.delivered():
            self._misplaced.append((shard_id, part))

    def _done(self, parts: list[Part]) -> None:
        """Book what is in the stream, group by group."""
        if not parts:
            return
        for number, of_group in itertools.groupby(parts, lambda part: part.group):
            pending = self._pending[number]
            for part in of_group:
                self._pending_bytes -= part.held
                pending.left -= len(part.envelopes)
            self._settle_if_done(number, pending)
        self._room.set()

    def _call_failed(self, batch: list[tuple[Lane, Entry]], error: ServiceError) -> None:
        """Put every record back: nothing is known of any of them."""
        self._events.sink_called("failed")
        self._events.sink_trouble("call_failed", str(error))
        if error.code == "ResourceNotFoundException":
            self._stale = True
        if error.retriable:
            now_s = clock.monotonic_s()
            self._breaker.failed(now_s)
            for lane, _ in batch:
                lane.refused(now_s, self._random)
            return
        self._breaker.succeeded()
        for lane, _ in batch:
            part = lane.suspected(alone=len(batch) == 1)
            if part is not None:
                self._let_go(part)
                self._poison(part, error.code)
                self._settle_if_done(part.group, self._pending[part.group])

    # The shard map.

    async def _read_map(self) -> bool:
        """Read the map and route everything that waits by it; False when the service does not answer."""
        try:
            shards = await self._service.list_shards()
        except ServiceError as error:
            self._events.sink_trouble("shard_map_unknown", str(error))
            self._map_failed = True
            return False
        new = ShardMap(shards)
        if not new.open:
            self._events.sink_trouble("shard_map_unknown", "the stream has no open shard")
            return False
        now_s = clock.monotonic_s()
        self._map_failed = False
        self._map_due_s = now_s + self._limits.map_age_max_s
        waiting = [part for lane in self._lanes.values() for part in lane.waiting]
        again = [part for shard_id, part in self._misplaced if not new.holds(shard_id, part.key)]
        self._done([part for shard_id, part in self._misplaced if new.holds(shard_id, part.key)])
        self._misplaced = []
        old, self._map, self._stale = self._lanes, new, False
        self._lanes = {
            shard.shard_id: old.get(shard.shard_id) or self._make_lane(shard.shard_id, now_s)
            for shard in new.open
        }
        for lane in self._lanes.values():
            lane.clear()
        waiting += self._unrouted + again
        self._unrouted = []
        for part in sorted(waiting, key=lambda part: (part.group, part.first_index)):
            self._route(part)
        return True

    async def _check_map(self, current: ShardMap) -> None:
        """Find out whether an old map is still right; until that is known, it is what there is."""
        due_s = self._limits.old_map_retry_s
        try:
            shards = await self._service.list_shards()
        except ServiceError as error:
            self._events.sink_trouble("shard_map_is_old", str(error))
        else:
            due_s = self._limits.map_age_max_s
            if ShardMap(shards).open != current.open:
                self._stale = True  # read once more, when nothing is in flight
        self._map_due_s = clock.monotonic_s() + due_s
        self._checking_map = False
        self._wake.set()

    def _make_lane(self, shard_id: str, now_s: float) -> Lane:
        limits = self._limits
        return Lane(
            shard_id,
            bytes_per_s=limits.shard_bytes_per_s,
            records_per_s=limits.shard_records_per_s,
            record_bytes_max=limits.record_bytes_max,
            now_s=now_s,
        )

    def state(self) -> SinkState:
        """Return whether the stream takes records, and what waits."""
        circuits = tuple(
            lane.shard_id for lane in self._lanes.values() if lane.breaker.state is not State.CLOSED
        )
        stream_open = self._breaker.state is not State.CLOSED
        return SinkState(
            ready=not self._map_failed and not stream_open,
            pending_records=sum(pending.left for pending in self._pending.values()),
            pending_bytes=self._pending_bytes,
            open_circuits=(*circuits, "stream") if stream_open else circuits,
        )
