"""The spool of one worker: group commit on a writer thread, and what is stored until it is delivered.

- The next commit starts when the last one ends, so a batch sizes itself to the disk.
- `Waiter.durable` is called only after the fsync; this is the one place where "accepted" comes from.
- At most `bytes_max` of groups are stored, none longer than `age_max_s`; beyond that the state is FULL.
- A group that the disk refuses is kept and tried again; the state is BROKEN until it is stored.
"""

from __future__ import annotations

import asyncio
import enum
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from ingest.limits import SpoolLimits
from ingest.records import Group, Run, Spooled
from ingest.spool import schema
from ingest.spool.group import OpenGroup, Waiter
from ingest.spool.store import Committed, SpoolError, Statement, Store, StoredGroup, settle
from runtime import clock

RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)
ROOM_SHARE = 0.95
"""A full spool takes messages again below this share of its limit, so that it does not flutter."""


class State(enum.Enum):
    """Whether the spool takes messages, and if not, why."""

    OPEN = "open"
    FULL = "full"
    BROKEN = "broken"


class _Job:
    """One transaction on its way to the disk; it is kept until it is there."""

    __slots__ = ("group", "open", "statements", "stored", "tries")

    def __init__(
        self, opened: OpenGroup, sealed: tuple[Group, StoredGroup] | None, statements: list[Statement]
    ) -> None:
        self.open = opened
        self.group: Group | None = None
        self.stored: StoredGroup | None = None
        if sealed is not None:
            self.group, self.stored = sealed
        self.statements = statements
        self.tries = 0


class Spool:
    """The driver of one `Store`. All methods but the writer's run on the event loop.

    `durable` hears of each group that is on the disk before its answers go out, `committed` after. `moved`
    hears what the state was and is when it changes, with the disk's error when it is BROKEN.
    """

    def __init__(
        self,
        store: Store,
        *,
        node: str,
        limits: SpoolLimits,
        durable: Callable[[int], None],
        committed: Callable[[Committed], None],
        moved: Callable[[State, State, SpoolError | None], None],
    ) -> None:
        self._store = store
        self.node = node
        self._limits = limits
        self._durable = durable
        self._committed = committed
        self._moved = moved
        figures = store.figures()
        self.stored_bytes = figures.bytes
        self.stored_groups = figures.groups
        self.oldest_ms = figures.oldest_ms
        self.last_committed = figures.last_number
        self.current = OpenGroup(figures.last_number + 1)
        self.state = State.OPEN
        self.fresh: deque[Spooled] = deque()
        self._fresh_bytes = 0
        self.grew = asyncio.Event()
        self._loose: list[Statement] = []
        self._freed_bytes = 0
        self._freed_groups = 0
        self._flush_due = False
        self._busy = False
        self.scheduled = False
        self._waiting_for_room: dict[Callable[[], None], None] = {}
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="spool-writer", daemon=True)
        self._writer.start()
        self._judge()

    @property
    def boot(self) -> str:
        """The part of record ids that tells this start of the worker from every other."""
        return self._store.boot

    # What the left side calls.

    def append(self, run: Run, payload_bytes: int) -> int:
        """Add a run to the open group and return its first index; only while `state` is OPEN."""
        first = self.current.append(run, payload_bytes)
        if not self.scheduled:
            self.schedule()
        return first

    def touch(self) -> None:
        """Commit soon: something was added to the open group directly."""
        if not self.scheduled:
            self.schedule()

    def answer(self, waiter: Waiter, reply: bytes) -> None:
        """Send `reply` when everything appended so far is durable; at once when it already is."""
        current = self.current
        if not current and not self._busy:
            waiter.durable(reply)
            return
        current.answer(waiter, reply)
        if not self.scheduled:
            self.schedule()

    def store(self, statements: Sequence[Statement]) -> None:
        """Run `statements` in a transaction soon; nobody waits for them."""
        self._loose.extend(statements)
        self._flush_soon()

    def join(self, statements: Sequence[Statement]) -> None:
        """Run `statements` in the transaction of the open group, after all that were stored before."""
        self._take_loose()
        self.current.statements.extend(statements)
        if not self.scheduled:
            self.schedule()

    def when_room(self, resume: Callable[[], None]) -> None:
        """Call `resume` once the spool takes messages again, first come first served."""
        self._waiting_for_room[resume] = None

    def waits_no_more(self, resume: Callable[[], None]) -> None:
        """Forget a call that `when_room` was asked for."""
        self._waiting_for_room.pop(resume, None)

    # What the right side calls.

    def take_fresh(self, after: int) -> Spooled | None:
        """Return the group after `after` if it is still in memory."""
        fresh = self.fresh
        while fresh and fresh[0].group.number <= after:
            self._fresh_bytes -= fresh.popleft().bytes
        if fresh and fresh[0].group.number == after + 1:
            taken = fresh.popleft()
            self._fresh_bytes -= taken.bytes
            return taken
        return None

    def settled(self, number: int, size: int, letters: Sequence[Statement]) -> None:
        """Delete group `number` of `size` bytes: it is delivered, or in `letters`."""
        self._loose.extend(settle((number,)))
        self._loose.extend(letters)
        self._freed_bytes += size
        self._freed_groups += 1
        if self.state is State.FULL:
            self._flush()  # somebody waits for the room
        else:
            self._flush_soon()

    # The commit loop.

    def schedule(self) -> None:
        """Commit the open group at the end of this turn of the loop, or after the commit under way."""
        self.scheduled = True
        self.current.opened_s = clock.monotonic_s()
        if not self._busy:
            self._loop.call_soon(self._start)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_later(self._limits.settle_s, self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        self._take_loose()
        if not self.scheduled:
            self.schedule()

    def _take_loose(self) -> None:
        """Move what waited to share a transaction into the open group."""
        self.current.statements.extend(self._loose)
        self._loose = []
        self.stored_bytes -= self._freed_bytes
        self.stored_groups -= self._freed_groups
        self._freed_bytes = self._freed_groups = 0

    def _start(self) -> None:
        if self._busy:
            return
        self.scheduled = False
        opened = self.current
        if not opened:
            return
        self._take_loose()
        self._busy = True
        sealed = opened.seal(self.node, self._store.boot)
        self.current = OpenGroup(opened.number + (sealed is not None))
        self._jobs.put(_Job(opened, sealed, opened.statements))

    def _write(self) -> None:
        """Run on the writer thread: one transaction at a time."""
        while (job := self._jobs.get()) is not None:
            began_s = clock.monotonic_s()
            error: SpoolError | None = None
            try:
                self._store.commit(job.stored, job.statements, clock.unix_ms())
            except SpoolError as refused:
                error = refused
            self._loop.call_soon_threadsafe(self._ended, job, error, clock.monotonic_s() - began_s)

    def _ended(self, job: _Job, error: SpoolError | None, seconds: float) -> None:
        if error is not None:
            self._retry(job, error)
            return
        self._busy = False
        self._start()  # the disk works while the answers go out
        if job.stored is not None and job.group is not None:
            size = len(job.stored.body)
            self.last_committed = job.stored.number
            self._durable(job.stored.number)
            self.stored_bytes += size
            self.stored_groups += 1
            self._keep_fresh(Spooled(job.group, size, job.stored.tenants))
            self.grew.set()
        for waiter, reply in job.open.replies.items():
            waiter.durable(reply)
        if job.stored is not None:
            waited_s = clock.monotonic_s() - job.open.opened_s
            stored = job.stored
            self._committed(Committed(stored.records, len(stored.body), seconds, waited_s, stored.tenants))
        if self.state is State.BROKEN:
            self._move(State.OPEN)
        self._judge()

    def _move(self, state: State, error: SpoolError | None = None) -> None:
        was, self.state = self.state, state
        if was is not state:
            self._moved(was, state, error)

    def _retry(self, job: _Job, error: SpoolError) -> None:
        """Keep what was to be written, let those who can withdraw, and try again.

        Those who came while it was being written wait for the same disk, so they hear of it too.
        """
        self._move(State.BROKEN, error)
        job.open.refused(error)
        self.current.refused(error)
        sealed = job.open.seal(self.node, self._store.boot)
        # When all is withdrawn nothing is left to write, and so nothing that would say that the disk is well.
        statements = job.open.statements if sealed or job.open.statements else [schema.PROBE]
        retried = _Job(job.open, sealed, statements)
        retried.tries = job.tries + 1
        wait_s = RETRY_S[min(job.tries, len(RETRY_S) - 1)]
        self._loop.call_later(wait_s, self._jobs.put, retried)

    def _keep_fresh(self, spooled: Spooled) -> None:
        self.fresh.append(spooled)
        self._fresh_bytes += spooled.bytes
        while self._fresh_bytes > self._limits.fresh_bytes_max:
            self._fresh_bytes -= self.fresh.popleft().bytes

    def _judge(self) -> None:
        """Move between OPEN and FULL by size and age, and let the waiting in when there is room."""
        if self.state is State.BROKEN:
            return
        limits = self._limits
        share = ROOM_SHARE if self.state is State.FULL else 1.0
        too_old = (
            self.oldest_ms is not None and clock.unix_ms() - self.oldest_ms > limits.age_max_s * 1000 * share
        )
        full = self.stored_bytes >= limits.bytes_max * share or too_old
        self._move(State.FULL if full else State.OPEN)
        waiting = self._waiting_for_room
        for _ in range(len(waiting)):
            if self.state is not State.OPEN or self.current.bytes >= limits.group_bytes_max:
                return
            resume = next(iter(waiting))
            del waiting[resume]
            resume()

    def note_oldest(self, oldest_ms: int | None) -> None:
        """Learn the age of the oldest stored group (Unix ms), which the shipper's reader looks up."""
        self.oldest_ms = oldest_ms
        self._judge()

    async def close(self) -> None:
        """Commit what is open, then close the file."""
        if self._loose:
            self._flush()
        if self.state is not State.BROKEN:
            self._start()
            while self._busy or self.current or self.scheduled:  # noqa: ASYNC110  # once, at the end
                await asyncio.sleep(0.002)
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join, 5.0)
        self._store.close()


def dead_letter(
    *,
    at_ms: int,
    tenant: str,
    device: str,
    stream: str,
    reason: str,
    detail: str,
    received_at_ms: int,
    booking: schema.Booking,
    payload: bytes,
) -> Statement:
    """Return the statement that keeps one dead letter."""
    values = (at_ms, tenant, device, stream, reason, detail, received_at_ms, int(booking), payload)
    return (schema.INSERT_DEAD_LETTER, values)
