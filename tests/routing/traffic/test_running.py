"""A shift between an API that comes and goes and others who change the same route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from routing.traffic import route as routes
from routing.traffic import running
from routing.traffic.counts import Counts, Reading
from routing.traffic.judgement import Terms
from routing.traffic.keeping import Kept, Unavailable
from routing.traffic.outcome import Event, Refused, Told
from routing.traffic.plan import BEFORE, planned
from routing.traffic.record import Head, Record, State, record_in, tags_of
from routing.traffic.running import Runner, abort, claim, resumed
from routing.traffic.shift import Pace, Shift
from routing.traffic.sides import Sides
from routing.traffic.statistics import Say

TARGETS = [{"virtualNode": "v1", "weight": 100}, {"virtualNode": "v2", "weight": 0}]
SPEC: dict[str, Any] = {"httpRoute": {"match": {"prefix": "/"}, "action": {"weightedTargets": TARGETS}}}
PLAN = planned(["v1", "v2"], [100, 0], to="v2", away=(), steps=(10, 100))
PACE = Pace(step_s=0.02, step_max_s=30.0, look_s=0.01)
NOW_S = 1000.0


def unix_s() -> float:
    return NOW_S


class Route:
    """A route that is kept in memory; `meanwhile` comes in before a call, by its name."""

    where = "memory"

    def __init__(self) -> None:
        self.spec = SPEC
        self.tags: dict[str, str] = {}
        self.written: list[tuple[int, ...]] = []
        self.meanwhile: Callable[[str], object] = str

    async def read(self) -> Kept:
        self.meanwhile("read")
        return Kept(self.spec, dict(self.tags))

    async def write(self, spec: dict[str, Any]) -> None:
        self.meanwhile("write")
        self.spec = spec
        self.written.append(routes.weights(spec))

    async def note(self, tags: dict[str, str]) -> None:
        self.meanwhile("note")
        self.tags |= tags

    @property
    def state(self) -> State | None:
        found = record_in(self.tags)
        return None if found is None else found.head.state


class Clusters:
    """Statistics of proxies, which grow by a hundred requests each time that they are read."""

    def __init__(self, failing: int = 0) -> None:
        self._failing = failing
        self._looks = 0

    async def read(self, say: Say) -> Reading:
        del say
        self._looks += 1
        canary, baseline = Counts(50 * self._looks, self._failing * self._looks), Counts(50 * self._looks)
        return {"proxy": {"cds_egress_shop_v2_http_80": canary, "cds_egress_shop_v1_http_80": baseline}}

    def asked(self) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLAIM_S", "RETRY_S"):
        monkeypatch.setattr(running, name, 0.01)


def record(of: str = "a", state: State = State.RUNNING, step: int = BEFORE, beat_s: float = NOW_S) -> Record:
    head = Head(of, f"{of}@host", state, step, NOW_S, beat_s, routes.digest(SPEC))
    return Record(head, PLAN, PACE, Terms(samples_min=50))


async def ran(
    route: Route, clusters: Clusters, *, ending: asyncio.Event | None = None
) -> tuple[State, list[Event]]:
    begun = record()
    await claim(route, begun, unix_s, resumed=False)
    said: list[Event] = []
    runner = Runner(
        route,
        clusters,
        unix_s=unix_s,
        monotonic_s=asyncio.get_running_loop().time,
        tell=said.append,
        ending=ending or asyncio.Event(),
    )
    shift = Shift(PLAN, PACE, begun.terms, Sides("shop", "v2", ("v1",)), step=BEFORE)
    async with asyncio.timeout(30):
        return await runner.run(begun, shift), said


async def test_a_good_canary_is_promoted() -> None:
    route = Route()
    state, said = await ran(route, Clusters())
    assert (state, route.state) == (State.PROMOTED, State.PROMOTED)
    assert route.written == [(90, 10), (0, 100)]
    assert [each.event for each in said if each.event is not Told.LOOK] == [
        Told.STEP,
        Told.STEP,
        Told.PROMOTED,
    ]


async def test_a_bad_canary_is_rolled_back_when_the_api_is_there_again() -> None:
    route, refused = Route(), iter(range(3))

    def meanwhile(call: str) -> None:
        if call == "write" and route.written and next(refused, None) is not None:
            raise Unavailable("down")

    route.meanwhile = meanwhile
    state, said = await ran(route, Clusters(failing=10))
    assert (state, route.state) == (State.ROLLED_BACK, State.ROLLED_BACK)
    assert route.written == [(90, 10), (100, 0)]
    assert [each.why for each in said if each.event is Told.UNAVAILABLE] == ["down"] * 3


async def test_an_api_that_is_away_is_waited_for() -> None:
    route, writes, others = Route(), iter(range(1000)), iter(range(1000))

    def meanwhile(call: str) -> None:
        away = next(writes) % 2 == 0 if call == "write" else route.written and next(others) % 4 == 0
        if away:
            raise Unavailable("down")

    route.meanwhile = meanwhile
    state, _ = await ran(route, Clusters())
    assert (state, route.written) == (State.PROMOTED, [(90, 10), (0, 100)])


async def test_who_is_interrupted_before_the_first_step_leaves_nothing() -> None:
    route, ending = Route(), asyncio.Event()
    ending.set()
    state, _ = await ran(route, Clusters(), ending=ending)
    assert (state, routes.weights(route.spec)) == (State.ABORTED, (100, 0))


@pytest.mark.parametrize("change", [{"timeout": {}}, {"action": {"weightedTargets": TARGETS[:1]}}])
async def test_what_somebody_else_changes_stays(change: dict[str, Any]) -> None:
    route = Route()
    other = {"httpRoute": SPEC["httpRoute"] | change}

    def meanwhile(call: str) -> None:
        if call == "read" and route.written:
            route.spec = other

    route.meanwhile = meanwhile
    state, said = await ran(route, Clusters())
    assert (state, route.state, route.spec) == (State.STOPPED, State.STOPPED, other)
    assert said[-1].why.startswith("somebody else changed the route in more than its weights")


async def test_a_shift_that_is_taken_over_stops() -> None:
    route = Route()

    def meanwhile(call: str) -> None:
        if call == "read" and route.written:
            route.tags = tags_of(record("b", step=0))

    route.meanwhile = meanwhile
    state, said = await ran(route, Clusters())
    assert (state, said[-1].why) == (State.STOPPED, "b@host took it over, and it is running")


async def test_a_shift_without_its_tags_stops() -> None:
    route = Route()

    def meanwhile(call: str) -> None:
        if call == "read" and route.written:
            route.tags = {}

    route.meanwhile = meanwhile
    state, said = await ran(route, Clusters())
    assert (state, said[-1].why) == (State.STOPPED, "the tags of the shift are gone")


async def test_of_two_that_claim_at_once_the_last_one_shifts() -> None:
    route = Route()
    both = await asyncio.gather(
        claim(route, record("a"), unix_s, resumed=False),
        claim(route, record("b"), unix_s, resumed=False),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in both) == ["NoneType", "Refused"]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (record(), "a@host shifts at this route already: it is running, abort it or wait"),
        (record(beat_s=0), "it is stalled, resume or abort it"),
        (record(state=State.RESTORING), "its weights are being restored"),
        (record(state=State.RESTORING, beat_s=0), "it is stalled, abort it"),
    ],
)
async def test_there_is_one_shift_at_a_route(there: Record, said: str) -> None:
    route = Route()
    route.tags = tags_of(there)
    with pytest.raises(Refused, match=said):
        await claim(route, record("b"), unix_s, resumed=False)
    assert route.tags == tags_of(there)


async def test_tags_that_are_not_understood_are_left_alone() -> None:
    route = Route()
    route.tags = {"headworks:shift": "what"}
    with pytest.raises(Refused, match="are none of ours"):
        await claim(route, record(), unix_s, resumed=False)


def test_a_stalled_shift_goes_on_where_it_was() -> None:
    kept = Kept(routes.weighted(SPEC, (90, 10)), tags_of(record(step=1, beat_s=0)))
    again = resumed(kept, "b", "b@host", NOW_S)
    assert (again.head.id, again.head.step, again.plan) == ("b", 1, PLAN)
    for other in (
        Kept(SPEC, {}),
        Kept(routes.weighted(SPEC, (50, 50)), kept.tags),
        Kept(kept.spec, tags_of(record(step=1))),
        Kept(kept.spec, tags_of(record(step=1, state=State.PROMOTED))),
    ):
        with pytest.raises(Refused):
            resumed(other, "b", "b@host", NOW_S)


async def test_a_shift_that_stalled_in_its_last_step_is_compared_once_more() -> None:
    route, said = Route(), list[Event]()
    route.spec = routes.weighted(SPEC, (0, 100))
    route.tags = tags_of(record(step=1, beat_s=0))
    again = resumed(await route.read(), "b", "b@host", NOW_S)
    await claim(route, again, unix_s, resumed=True)
    assert again.terms is not None
    shift = Shift(PLAN, PACE, again.terms, Sides("shop", "v2", ("v1",)), step=1)
    time = asyncio.get_running_loop().time
    runner = Runner(
        route, Clusters(), unix_s=unix_s, monotonic_s=time, tell=said.append, ending=asyncio.Event()
    )
    async with asyncio.timeout(30):
        assert await runner.run(again, shift) is State.PROMOTED
    assert route.written == [(90, 10), (0, 100)]


async def test_abort_restores_what_a_shift_sets_at_the_same_moment() -> None:
    route = Route()
    route.spec = routes.weighted(SPEC, (90, 10))
    route.tags = tags_of(record(step=0))
    late = iter([(0, 100)])

    def meanwhile(call: str) -> None:
        if call == "read" and route.written and (weights := next(late, None)):
            route.spec = routes.weighted(SPEC, weights)

    route.meanwhile = meanwhile
    done = await abort(route, "c", "c@host", unix_s)
    assert (done.head.state, done.why) == (State.ABORTED, "aborted by c@host")
    assert route.written == [(100, 0), (100, 0)]
    with pytest.raises(Refused, match="it has ended already: aborted, aborted by c@host"):
        await abort(route, "d", "d@host", unix_s)


async def test_abort_does_not_undo_what_somebody_else_did() -> None:
    route = Route()
    route.spec = routes.weighted(SPEC, (50, 50))
    route.tags = tags_of(record(step=0))
    with pytest.raises(Refused, match="somebody else changed the route; it has v1 50, v2 50: nothing"):
        await abort(route, "c", "c@host", unix_s)
    route.spec = SPEC
    with pytest.raises(Refused, match="there is no shift at this route"):
        await abort(Route(), "c", "c@host", unix_s)


def test_a_record_fits_into_tags_whatever_is_asked() -> None:
    weights = [100] * 9 + [0]
    plan = planned([f"n{at}" for at in range(10)], weights, to="n9", away=(), steps=range(81, 101))
    terms = Terms(0.987654321, 0.123456789, 12345.678, 12.3456789, 10**9, 0.000123456789)
    head = Head("0" * 8, "x" * 68, State.ROLLED_BACK, 19, 1e9 + 0.123, 1e9 + 0.123, "f" * 16)
    made = Record(head, plan, Pace(86400.123, 864001.23, 600.0), terms, "w" * 256)
    assert record_in(tags_of(made)) == made
    assert record_in(tags_of(msgspec.structs.replace(made, why="w" * 1000))) == made
