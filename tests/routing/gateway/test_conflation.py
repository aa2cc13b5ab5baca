"""What a dashboard sees: filters, and what is left when it reads slowly."""

from __future__ import annotations

import fnmatch
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.gateway.conflation import (
    REMEMBERED_MAX,
    VALUES_A_BATCH_MAX,
    Batch,
    Conflation,
    Filter,
    Kept,
    Reading,
    Subscription,
)


def reading(device: str = "pump-1", ts: int = 1, stream: str = "main", **metrics: float) -> Reading:
    return reading_of(device, ts, stream, metrics)


def reading_of(device: str, ts: int, stream: str, metrics: dict[str, float]) -> Reading:
    return Reading(device=device, stream=stream, ts=ts, metrics=metrics or {"t": 1.0})


def conflation(keys_max: int = 100, **fields: object) -> Conflation:
    return Conflation(msgspec.convert(fields, Subscription), keys_max=keys_max, now_s=0.0)


def test_a_filter_is_of_devices_and_streams_and_metrics() -> None:
    subscription = Subscription(devices=["pump-*", "fan-?"], streams=["main"], metrics=["temp*", "rpm"])
    wanted = Filter(subscription).wanted
    assert wanted(reading("pump-1", temperature=1, rpm=2, other=3)) == ["temperature", "rpm"]
    assert wanted(reading("fan-1", rpm=1)) == ["rpm"]
    assert wanted(reading("fan-12", rpm=1)) == []
    assert wanted(reading("pump-1", stream="raw", rpm=1)) == []


def test_an_empty_list_lets_nothing_pass_and_none_everything() -> None:
    assert Filter(Subscription(devices=[])).wanted(reading()) == []
    assert Filter(Subscription()).wanted(reading()) == ["t"]


NAMES = st.text("ab-.1", min_size=1, max_size=6)


@given(patterns=st.lists(st.text("ab-.1*?", min_size=1, max_size=5), max_size=4), name=NAMES)
def test_a_filter_says_twice_what_the_shell_says(patterns: list[str], name: str) -> None:
    wanted = Filter(Subscription(devices=patterns)).wanted
    expected = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    assert bool(wanted(reading(name))) is expected
    assert bool(wanted(reading(name))) is expected


def test_no_pattern_makes_a_filter_slow() -> None:
    wanted = Filter(Subscription(devices=["a*" * 60 + "b"])).wanted
    began_s = time.perf_counter()
    assert wanted(reading("a" * 128)) == []
    assert time.perf_counter() - began_s < 0.5


def test_a_filter_forgets_rather_than_grows() -> None:
    subject = Filter(Subscription(devices=["d*"], metrics=["m*"]))
    for number in range(REMEMBERED_MAX + 10):
        subject.wanted(reading_of(f"d{number}", 1, "main", {f"m{number}": 1.0}))
    assert len(subject._known_sources) <= REMEMBERED_MAX
    assert len(subject._known_metrics) <= REMEMBERED_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {"devices": ["[a]"]},
        {"devices": [""]},
        {"devices": ["x" * 129]},
        {"devices": ["a"] * 65},
        {"every_ms": 49},
        {"every_ms": 60_001},
        {"tenant": "*"},
        {"more": 1},
    ],
)
def test_a_subscription_has_limits(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields), type=Subscription)


def test_the_newest_value_stays_and_the_others_are_counted() -> None:
    subject = conflation()
    for ts in (1, 3, 2):
        assert subject.take(reading(ts=ts, t=float(ts))) == 1
    batch = subject.batch(0.0)
    assert batch == Batch(
        values=[Kept(device="pump-1", stream="main", metric="t", ts=3, value=3.0)], conflated=2, dropped=0
    )
    assert subject.batch(0.5) == Batch(values=[], conflated=0, dropped=0)


def test_of_two_values_of_one_time_the_later_one_stays() -> None:
    subject = conflation()
    subject.take(reading(t=1.0))
    subject.take(reading(t=2.0))
    assert subject.batch(0.0).values[0].value == 2.0


def test_a_batch_is_due_at_the_rate_that_was_asked_for() -> None:
    subject = conflation(every_ms=500)
    assert subject.due_in_s(0.0) is None
    subject.take(reading())
    assert subject.due_in_s(0.0) == 0.0
    subject.batch(10.0)
    assert subject.due_in_s(10.0) is None
    subject.take(reading())
    assert subject.due_in_s(10.1) == pytest.approx(0.4)
    assert subject.due_in_s(11.0) == 0.0


def test_what_has_no_room_is_dropped_and_said() -> None:
    subject = conflation(keys_max=2)
    for number in range(5):
        subject.take(reading(f"d{number}"))
    assert len(subject) == 2
    batch = subject.batch(0.0)
    assert [kept.device for kept in batch.values] == ["d0", "d1"]
    assert batch.dropped == 3


def test_a_batch_has_a_limit_and_nothing_waits_for_ever() -> None:
    subject = conflation(keys_max=3000)
    for number in range(VALUES_A_BATCH_MAX + 5):
        subject.take(reading(f"d{number}"))
    assert len(subject.batch(0.0).values) == VALUES_A_BATCH_MAX
    subject.take(reading("new"))
    rest = [kept.device for kept in subject.batch(1.0).values]
    assert rest == [*(f"d{number}" for number in range(VALUES_A_BATCH_MAX, VALUES_A_BATCH_MAX + 5)), "new"]


Step = tuple[str, str, int] | None
STEPS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"]), st.integers(0, 9)),
    ),
    max_size=60,
)


@given(steps=STEPS, keys_max=st.integers(1, 8))
def test_what_was_taken_is_sent_conflated_dropped_or_kept(steps: list[Step], keys_max: int) -> None:
    subject = conflation(keys_max=keys_max)
    taken = sent = conflated = dropped = 0
    model: dict[tuple[str, str], int] = {}
    for step in steps:
        if step is None:
            batch = subject.batch(0.0)
            assert {(kept.device, kept.metric): kept.ts for kept in batch.values} == model
            model = {}
            sent += len(batch.values)
            conflated += batch.conflated
            dropped += batch.dropped
        else:
            device, metric, ts = step
            taken += subject.take(reading_of(device, ts, "main", {metric: 1.0}))
            if (device, metric) in model or len(model) < keys_max:
                model[device, metric] = max(ts, model.get((device, metric), 0))
        assert len(subject) == len(model) <= keys_max
    last = subject.batch(0.0)
    assert taken == sent + conflated + dropped + len(last.values) + last.conflated + last.dropped
