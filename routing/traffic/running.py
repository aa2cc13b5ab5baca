"""Runs a shift: sets weights, reads statistics, notes at the route where it is, and undoes it if need be.

Before each change the route and its tags are read: a shift that was taken over, or whose route somebody else
changed, stops and changes nothing more. An intention is noted before it is carried out, so that whoever
finds a shift that was killed knows what may have happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from routing.traffic import route
from routing.traffic.keeping import Keeping, Kept, Unavailable
from routing.traffic.outcome import Event, Refused, Tell, Told, side
from routing.traffic.record import Record, State, record_in, tags_of
from routing.traffic.shift import Do, Next, Shift
from routing.traffic.statistics import Statistics

CLAIM_S: Final = 1.0
"""How long a claim stands before it is believed: longer than from reading the tags to writing them."""
RESTORE_MAX_S: Final = 300.0
RETRY_S: Final = 1.0
INTERRUPTED: Final = "it was interrupted"
ABORT_ROUNDS: Final = 5


class _Stop(Exception):
    """The shift is not ours any more, or its route is not."""


class Runner:
    """Runs one shift. `unix_s` is noted, `monotonic_s` counts; `ending` is set by who wants it undone."""

    def __init__(
        self,
        keeping: Keeping,
        statistics: Statistics,
        *,
        unix_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        tell: Tell,
        ending: asyncio.Event,
    ) -> None:
        self._keeping = keeping
        self._statistics = statistics
        self._unix_s = unix_s
        self._monotonic_s = monotonic_s
        self._tell = tell
        self._ending = ending

    async def run(self, record: Record, shift: Shift) -> State:
        """Run a shift which was claimed, from the step that it stands at, and return how it ended."""
        shift.first(await self._statistics.read(self._unavailable))
        try:
            record = await self._begun(record, shift)
            while record.open:
                said = await self._looked(record, shift)
                try:
                    record = await self._acted(record, shift, said)
                except Unavailable as error:
                    self._unavailable(str(error))
        except _Stop as stop:
            self._say(Told.STOPPED, str(stop))
            return State.STOPPED
        return record.head.state

    async def _begun(self, record: Record, shift: Shift) -> Record:
        step = max(record.head.step, 0) if record.terms is None else record.plan.again(record.head.step)
        while not self._ending.is_set():
            try:
                return await self._set(record, shift, step)
            except Unavailable as error:
                self._unavailable(str(error))
                await self._ended_within(RETRY_S)
        return await self._undone(record, State.ABORTED, INTERRUPTED)

    async def _looked(self, record: Record, shift: Shift) -> Next:
        """Wait for the next look, and take it."""
        await self._ended_within(record.pace.look_s)
        said = shift.look(await self._statistics.read(self._unavailable), self._monotonic_s())
        seen = shift.watch
        event = Event(Told.LOOK, self._now(), said.why, step=shift.step)
        if shift.terms is not None:
            event = msgspec.structs.replace(event, canary=side(seen.canary), baseline=side(seen.baseline))
        self._tell(event)
        return said

    async def _ended_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    async def _acted(self, record: Record, shift: Shift, said: Next) -> Record:
        if self._ending.is_set():
            return await self._undone(record, State.ABORTED, INTERRUPTED)
        match said.do:
            case Do.WAIT:
                _, found = await self._mine(record)
                record = found.after(self._unix_s())
                await self._keeping.note(tags_of(record))
            case Do.STEP:
                record = await self._set(record, shift, shift.step + 1)
            case Do.PROMOTE:
                await self._mine(record)
                record = await self._ended(record, State.PROMOTED, said.why)
            case Do.ROLL_BACK:
                record = await self._undone(record, State.ROLLED_BACK, said.why)
        return record

    async def _set(self, record: Record, shift: Shift, step: int) -> Record:
        kept, _ = await self._mine(record)
        record = record.after(self._unix_s(), step=step)
        await self._keeping.note(tags_of(record))
        weights = record.plan.weights(step)
        await self._keeping.write(route.weighted(kept.spec, weights))
        shift.begin(step, self._monotonic_s())
        by_node = dict(zip(route.nodes(kept.spec), weights, strict=True))
        self._tell(
            Event(Told.STEP, self._now(), step=step, share=round(record.plan.share(step), 4), weights=by_node)
        )
        return record

    async def _undone(self, record: Record, state: State, why: str) -> Record:
        """Restore the weights, for as long as that takes; then it has ended."""
        until_s = self._monotonic_s() + RESTORE_MAX_S
        while True:
            try:
                kept, found = await self._mine(record)
                record = msgspec.structs.replace(found.after(self._unix_s(), state=State.RESTORING), why=why)
                await self._keeping.note(tags_of(record))
                await self._keeping.write(route.weighted(kept.spec, record.plan.before))
                return await self._ended(record, state, why)
            except Unavailable as error:
                self._unavailable(str(error))
                if self._monotonic_s() >= until_s:
                    raise _Stop(f"the weights are not restored, abort it: {error}") from error
                await asyncio.sleep(RETRY_S)

    async def _ended(self, record: Record, state: State, why: str) -> Record:
        record = msgspec.structs.replace(record.after(self._unix_s(), state=state), why=why)
        await self._keeping.note(tags_of(record))
        self._say(Told(state.value), why)
        return record

    async def _mine(self, record: Record) -> tuple[Kept, Record]:
        """Return the route and the record, if they are as this shift left them; raises _Stop."""
        kept = await self._keeping.read()
        found = recorded(kept)
        if found is None:
            raise _Stop("the tags of the shift are gone")
        if found.head.id != record.head.id:
            raise _Stop(f"{found.head.by} took it over, and it is {found.head.state.value}")
        if not found.explains(kept.spec):
            await self._keeping.note(tags_of(found.after(self._unix_s(), state=State.STOPPED)))
            raise _Stop(changed_text(found, kept))
        return kept, found

    def _unavailable(self, why: str) -> None:
        self._say(Told.UNAVAILABLE, why)

    def _say(self, told: Told, why: str) -> None:
        self._tell(Event(told, self._now(), why))

    def _now(self) -> float:
        return round(self._unix_s(), 3)


async def claim(keeping: Keeping, record: Record, unix_s: Callable[[], float], *, resumed: bool) -> None:
    """Note a shift as one's own, if nobody else shifts at the route; raises Refused."""
    kept = await keeping.read()
    found = recorded(kept)
    if found is not None and found.open and not (resumed and found.stalled(unix_s())):
        raise Refused(f"{found.head.by} shifts at this route already: {_advice(found, unix_s())}")
    await keeping.note(tags_of(record))
    await asyncio.sleep(CLAIM_S)
    now = recorded(await keeping.read())
    if now is None or now.head.id != record.head.id:
        by = "somebody" if now is None else now.head.by
        raise Refused(f"{by} began to shift at this route at the same time")


async def abort(keeping: Keeping, new_id: str, by: str, unix_s: Callable[[], float]) -> Record:
    """Restore the weights from before a shift, whether it runs or is stalled; raises Refused.

    Who runs it finds out at the next look. One that was about to set weights may still do so: it is looked
    again, and those are restored too.
    """
    kept = await keeping.read()
    found = recorded(kept)
    if found is None or not found.open:
        raise Refused("there is no shift at this route" if found is None else f"it has {_how(found)}")
    if not found.explains(kept.spec):
        raise Refused(f"{changed_text(found, kept)}: nothing is restored")
    why = f"aborted by {by}"[:200]
    restoring = found.after(unix_s(), id=new_id, by=by, state=State.RESTORING)
    restoring = msgspec.structs.replace(restoring, why=why)
    await keeping.note(tags_of(restoring))
    for _ in range(ABORT_ROUNDS):
        await keeping.write(route.weighted(kept.spec, found.plan.before))
        await asyncio.sleep(CLAIM_S)
        kept = await keeping.read()
        if route.digest(kept.spec) != found.head.digest:
            raise Refused(changed_text(found, kept))
        if route.weights(kept.spec) == found.plan.before:
            aborted = restoring.after(unix_s(), state=State.ABORTED)
            await keeping.note(tags_of(aborted))
            return aborted
    raise Refused(f"weights are changed as often as they are restored, to {route.weights(kept.spec)}")


def resumed(kept: Kept, new_id: str, by: str, now_s: float) -> Record:
    """Return the record with which a stalled shift goes on; raises Refused."""
    found = recorded(kept)
    if found is None or not found.open:
        raise Refused("there is no shift at this route" if found is None else f"it has {_how(found)}")
    if found.head.state is not State.RUNNING or not found.stalled(now_s):
        raise Refused(f"it cannot be resumed: {_advice(found, now_s)}")
    if not found.explains(kept.spec):
        raise Refused(f"{changed_text(found, kept)}: abort cannot undo this, begin anew")
    return found.after(now_s, id=new_id, by=by)


def recorded(kept: Kept) -> Record | None:
    """Return what is noted at a route; raises Refused where it is not understood."""
    try:
        return record_in(kept.tags)
    except msgspec.DecodeError as error:
        raise Refused(
            f"the tags headworks:shift* of the route are none of ours, remove them: {error}"
        ) from error


def changed_text(record: Record, kept: Kept) -> str:
    """Say that somebody else changed the route."""
    nodes, weights = route.nodes(kept.spec), route.weights(kept.spec)
    now = ", ".join(f"{node} {weight}" for node, weight in zip(nodes, weights, strict=True))
    what = "" if route.digest(kept.spec) == record.head.digest else " in more than its weights"
    return f"somebody else changed the route{what}; it has {now}"


def _how(record: Record) -> str:
    return f"ended already: {record.head.state.value}, {record.why}"


def _advice(record: Record, now_s: float) -> str:
    if record.head.state is State.RESTORING:
        return "its weights are being restored" if not record.stalled(now_s) else "it is stalled, abort it"
    if record.stalled(now_s):
        return "it is stalled, resume or abort it"
    return "it is running, abort it or wait"
