"""Campaigns as data: all that there are can be read, and what is wrong in one is found by its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtests import plan as plans
from loadtests.plan import PlanError, decode, load, names

ALL = [
    "bad-certificates",
    "burst-after-outage",
    "kill-nine",
    "morning-ramp",
    "noisy-tenant",
    "oversize-and-malformed",
    "reconnect-storm",
    "sink-outage",
    "slow-readers",
    "steady",
]
GOOD = """\
what = "A test."
load_s = 10

[promise]
p99_ms = 100

[[groups]]
name = "pumps"
speaks = "mqtt"
devices = 100

[[groups]]
name = "panels"
speaks = "websocket"
devices = 50

[[groups]]
name = "operators"
speaks = "api"
devices = 2

[[stages]]
until_s = 4
share = 0.5

[[stages]]
until_s = 8
rate = 2.0

[[events]]
at_s = 5
what = "kill_worker"

[[events]]
at_s = 6
what = "out_of_reach"
for_s = 2
groups = ["pumps"]
"""


def test_the_campaigns_are_these() -> None:
    assert names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_campaign_can_be_read_and_ends_soon(name: str) -> None:
    plan = load(name)
    assert plan.what.endswith(".")
    assert plan.load_s <= 30
    assert plan.devices <= 1000
    assert plan.promise.lost_max == 0
    assert any(group.judged and not group.turned_away for group in plan.groups)


def test_every_campaign_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs/guides/load.md").read_text()
    for name in ALL:
        assert f"`{name}`" in text


def test_every_field_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs/guides/load.md").read_text()
    for struct in (plans.Plan, plans.Group, plans.Stage, plans.Event, plans.Promise, plans.NodeWishes):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in text, field


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "devices = 50",
            "devises = 50",
            "line 15 in groups: there is no field devises; did you mean devices?",
        ),
        ("devices = 50", "devices = 0", "line 15 in groups: devices: Expected `int` >= 1"),
        ('"websocket"', '"smtp"', "line 14 in groups: speaks: Invalid enum value 'smtp'"),
        ("load_s = 10", "load_s = 10\nloud = 1", "line 3: there is no field loud; did you mean load_s?"),
        ("load_s = 10", 'load_s = "long"', "line 2: load_s: Expected `float`, got `str`"),
        ("p99_ms = 100", "p99_ms = 100\nlost = 0", "line 6 in promise: there is no field lost"),
        ("p99_ms = 100", "", "line 4 in promise: Object missing required field `p99_ms`"),
        (
            'what = "kill_worker"',
            'what = "kill_all"',
            "line 32 in events: what: Invalid enum value 'kill_all'",
        ),
        ('groups = ["pumps"]', 'groups = ["pumpz"]', "line 38 in events: there is no group pumpz"),
        ("at_s = 6", "at_s = 60", "line 35 in events: it happens after the load"),
        ("until_s = 8", "until_s = 3", "line 27 in stages: it ends before the one before"),
        ('name = "panels"', 'name = "pumps"', "line 13 in groups: there are two groups pumps"),
        (
            "devices = 50",
            'devices = 50\ncredential = "none"',
            "line 16 in groups: a credential other than good",
        ),
        ("[[groups]]", "[groups]", "a.toml: Cannot"),
        ("load_s = 10", "load_s = ", "a.toml: Invalid value (at line 2"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found_by_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(
        PlanError, match=rf"^a\.toml.*{re.escape(said)}" if "a.toml" not in said else re.escape(said)
    ):
        decode(GOOD.replace(old, new), "a.toml")


def test_a_group_must_be_a_list() -> None:
    with pytest.raises(PlanError, match=r"write \[\[groups\]\]"):
        decode('what = "x"\nload_s = 1\n[promise]\np99_ms = 1\n[groups]\nname = "a"\n', "a.toml")


def test_an_unknown_campaign_is_named_with_its_neighbour() -> None:
    with pytest.raises(PlanError, match=r"there is no campaign stedy; did you mean steady\?"):
        load("stedy")
    with pytest.raises(PlanError, match="there is no campaign zzz: bad-certificates, "):
        load("zzz")


def test_a_stage_holds_until_its_end_and_the_last_for_ever() -> None:
    plan = decode(GOOD, "a.toml")
    assert [plan.stage_at(at_s).share for at_s in (0, 3.9, 4, 8, 99)] == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert [plan.stage_at(at_s).rate for at_s in (0, 4, 99)] == [1.0, 2.0, 2.0]


def test_without_stages_everybody_is_there_from_the_start() -> None:
    plan = decode(GOOD[: GOOD.index("[[stages]]")], "a.toml")
    assert (plan.stage_at(0).share, plan.stage_at(0).rate) == (1.0, 1.0)


def test_it_scales_with_its_proportions() -> None:
    plan = decode(GOOD, "a.toml").scaled(devices=3000, load_s=30, period_s=9.0)
    assert [group.devices for group in plan.groups] == [2000, 1000, 2]
    assert {group.period_s for group in plan.groups} == {9.0}
    assert (plan.load_s, [stage.until_s for stage in plan.stages]) == (30, [12, 24])
    assert [(event.at_s, event.for_s) for event in plan.events] == [(15, 0), (18, 6)]
    same = decode(GOOD, "a.toml")
    assert same.scaled(devices=None, load_s=None, period_s=None) == same
    assert min(group.devices for group in same.scaled(devices=1, load_s=None, period_s=None).groups) == 1


@pytest.mark.parametrize("devices", [1, 7, 10, 100, 401, 5000, 1_000_000])
def test_shards_hold_all_devices_within_a_few(devices: int) -> None:
    count, size = (
        load("steady").scaled(devices=devices * 6, load_s=None, period_s=None).groups[1].shards(2000)
    )
    wanted = load("steady").scaled(devices=devices * 6, load_s=None, period_s=None).groups[1].devices
    assert abs(count * size - wanted) <= max(1, 0.1 * wanted)
    assert 1 <= size <= 2000
    assert count >= min(wanted, 10)
