"""Steps become weights: whole numbers that give the canary its part and leave the others theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.traffic.plan import BEFORE, Plan, PlanError, planned


def of(weights: dict[str, int], to: str = "v2", away: tuple[str, ...] = (), *steps: int) -> Plan:
    return planned(list(weights), list(weights.values()), to=to, away=away, steps=steps or (5, 25, 50, 100))


@pytest.mark.parametrize(
    ("weights", "away", "steps"),
    [
        ({"v1": 100, "v2": 0}, (), [(95, 5), (75, 25), (50, 50), (0, 100)]),
        ({"v1": 1, "v2": 0}, (), [(95, 5), (75, 25), (50, 50), (0, 100)]),
        ({"v1": 90, "v2": 10}, (), [(75, 25), (50, 50), (0, 100)]),
        (
            {"v1": 40, "v2": 0, "v3": 10},
            ("v1",),
            [(76, 4, 20), (60, 20, 20), (40, 40, 20), (0, 80, 20)],
        ),
        (
            {"v1": 60, "v2": 0, "v3": 40},
            (),
            [(57, 5, 38), (45, 25, 30), (30, 50, 20), (0, 100, 0)],
        ),
        (
            {"v1": 100, "v2": 0, "v3": 100},
            (),
            [(48, 5, 47), (38, 25, 37), (25, 50, 25), (0, 100, 0)],
        ),
    ],
)
def test_steps_are_weights(
    weights: dict[str, int], away: tuple[str, ...], steps: list[tuple[int, ...]]
) -> None:
    plan = of(weights, "v2", away)
    assert [plan.weights(step) for step in range(len(plan.steps))] == steps
    assert plan.weights(BEFORE) == tuple(weights.values())


@pytest.mark.parametrize(
    ("weights", "to", "away", "steps", "said"),
    [
        ({"v1": 1}, "v2", (), (50,), "v2 is not a target of the route, which leads to v1"),
        ({"v1": 1, "v2": 0}, "v2", ("v2",), (50,), "v2 cannot be led to and away from"),
        ({"v1": 1, "v2": 0}, "v2", ("v3",), (50,), "v3 is not a target"),
        ({"v1": 0, "v2": 1}, "v2", (), (50,), "nothing is left to lead to v2: it has 1 of 1"),
        ({"v1": 40, "v2": 60}, "v2", (), (50,), "v2 is beyond the last step: it has 60 of 100"),
        ({"v1": 1, "v2": 0}, "v2", (), (50, 25), "each more than the one before"),
        ({"v1": 1, "v2": 0}, "v2", (), (50, 101), "percent from 1 to 100"),
        ({"v1": 1, "v2": 0}, "v2", (), tuple(range(1, 22)), "there are 1 to 20 steps, not 21"),
    ],
)
def test_what_cannot_be_shifted_is_said(
    weights: dict[str, int], to: str, away: tuple[str, ...], steps: tuple[int, ...], said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        of(weights, to, away, *steps)


def test_a_target_on_several_ports_is_not_told_apart() -> None:
    with pytest.raises(PlanError, match="v2 is there on several ports"):
        planned(["v1", "v2", "v2"], [1, 0, 0], to="v2", away=(), steps=(50,))


@given(
    weights=st.lists(st.integers(0, 100), min_size=2, max_size=10),
    steps=st.sets(st.integers(1, 100), min_size=1, max_size=6),
    data=st.data(),
)
def test_every_weight_is_one_of_app_mesh_and_nobody_else_is_cut_off(
    weights: list[int], steps: set[int], data: st.DataObject
) -> None:
    names = [f"n{place}" for place in range(len(weights))]
    away = data.draw(st.lists(st.sampled_from(names[1:]), unique=True))
    try:
        plan = planned(names, weights, to=names[0], away=away, steps=sorted(steps))
    except PlanError:
        return
    before = 0
    for step, percent in enumerate(plan.steps):
        made = plan.weights(step)
        assert all(0 <= weight <= 100 for weight in made)
        assert made[0] >= max(before, 1)
        before = made[0]
        for place, weight in enumerate(made):
            if place not in {0, *plan.away}:
                assert bool(weight) == bool(weights[place])
        if percent == 100:
            assert all(made[place] == 0 for place in plan.away)


def test_a_shift_goes_on_where_there_is_somebody_to_compare_with() -> None:
    plan = of({"v1": 100, "v2": 0})
    assert [plan.again(step) for step in (BEFORE, 0, 1, 2, 3)] == [0, 0, 1, 2, 2]
    assert of({"v1": 100, "v2": 0}, "v2", (), 100).again(0) == 0
