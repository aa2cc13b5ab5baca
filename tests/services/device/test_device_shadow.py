"""Shadows: merge patches as RFC 7396 says, and a delta that brings about what is desired, and no more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.device.shadow import DEPTH_MAX, delta, merge_patch, same, too_deep
from tests.support.device_service import Service, device_service

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=2)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.text("abc", max_size=2), values, max_size=4)
states = objects.map(lambda patch: merge_patch({}, patch))
"""What a shadow can hold: a state comes about by patches, so that no object in it has a null."""


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_the_specification_shows(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(states, objects)
def test_a_patch_twice_is_a_patch_once_and_changes_no_argument(target: Any, patch: Any) -> None:
    before = json.dumps([target, patch])
    once = merge_patch(target, patch)
    assert same(merge_patch(once, patch), once)
    assert json.dumps([target, patch]) == before


@given(states, states)
def test_a_device_that_does_what_the_delta_says_has_no_delta_left(desired: Any, reported: Any) -> None:
    assert delta(desired, merge_patch(reported, delta(desired, reported))) == {}


@given(states, states)
def test_there_is_no_delta_exactly_when_all_that_is_desired_is_reported(desired: Any, reported: Any) -> None:
    assert (delta(desired, reported) == {}) == same(merge_patch(reported, desired), reported)


@given(states)
def test_a_device_that_reports_what_is_desired_has_no_delta(state: Any) -> None:
    assert delta(state, state) == {}
    assert same(delta(state, {}), state)


def test_true_is_not_one() -> None:
    assert delta({"a": True, "b": [0]}, {"a": 1, "b": [False]}) == {"a": True, "b": [0]}
    assert delta({"a": 1}, {"a": 1.0}) == {}


@given(values)
def test_depth_is_counted(value: Any) -> None:
    def depth(inner: Any) -> int:
        if not isinstance(inner, dict | list):
            return 0
        parts = inner.values() if isinstance(inner, dict) else inner
        return 1 + max(map(depth, parts), default=0)

    for _ in range(DEPTH_MAX):
        assert too_deep(value) == (depth(value) > DEPTH_MAX)
        value = [value]
    assert too_deep([value])


async def test_a_shadow_tells_what_the_device_has_to_change(service: Service) -> None:
    await service.of_acme("POST", "/devices", {"device": "pump"})
    path = "/devices/pump/shadow"
    empty = await service.of_acme("GET", path)
    assert (empty.body["delta"], empty.headers["ETag"]) == ({}, '"0-0"')
    desired = {"speed": 3, "mode": {"night": True, "level": 2}}
    changed = await service.of_acme("PATCH", f"{path}/desired", desired)
    assert (changed.status, changed.body["version"]) == (200, 1)
    reported = await service.of_acme(
        "PATCH", f"{path}/reported", {"speed": 3, "mode": {"level": 1}, "heat": 40}, device="pump"
    )
    assert reported.status == 200
    found = await service.of_acme("GET", path, device="pump")
    assert found.body["delta"] == {"mode": {"night": True, "level": 2}}
    assert found.headers["ETag"] == '"1-1"'
    refused = await service.of_acme("PATCH", f"{path}/desired", {"speed": 9}, device="pump")
    assert (refused.status, refused.slug) == (403, "not-for-devices")


async def test_a_change_of_another_version_is_refused(service: Service) -> None:
    await service.of_acme("POST", "/devices", {"device": "pump"})
    path = "/devices/pump/shadow/desired"
    first = await service.of_acme("PATCH", path, {"a": 1}, headers={"If-Match": '"0"'})
    assert first.headers["ETag"] == '"1"'
    late = await service.of_acme("PATCH", path, {"a": 2}, headers={"If-Match": '"0"'})
    assert (late.status, late.headers["ETag"]) == (412, '"1"')
    assert (await service.of_acme("PATCH", path, {"a": 1})).body["version"] == 1, "nothing has changed"
    known = await service.of_acme("GET", path, headers={"If-None-Match": '"1"'})
    assert (known.status, known.body) == (304, b"")


async def test_a_shadow_has_limits(service: Service) -> None:
    await service.of_acme("POST", "/devices", {"device": "pump"})
    path = "/devices/pump/shadow/desired"
    deep: Any = 1
    for _ in range(DEPTH_MAX + 1):
        deep = {"a": deep}
    for body in (deep, {"a": "x" * 8200}):
        assert (await service.of_acme("PATCH", path, body)).status == 422
    for body in (["a"], "a", None, 1):
        answer = await service.of_acme(
            "PATCH", path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        assert answer.status == 400
    assert (await service.of_acme("PATCH", path, {"a": "x" * 8000})).status == 200
    assert (await service.of_acme("PATCH", path, {"b": "x" * 8000})).status == 422, "together too large"


async def test_a_device_waits_for_what_it_has_to_change(service: Service) -> None:
    await service.of_acme("POST", "/devices", {"device": "pump"})
    path = "/devices/pump/shadow"
    known = {"If-None-Match": '"0-0"'}
    nothing = await service.of_acme("GET", f"{path}?wait_s=0.05", headers=known)
    assert nothing.status == 304
    async with asyncio.timeout(30):
        waiting = asyncio.gather(
            *(service.of_acme("GET", f"{path}?wait_s=60", headers=known) for _ in range(3))
        )
        await asyncio.sleep(0.05)  # one of them may come late, and is answered all the same
        await service.of_acme("PATCH", f"{path}/desired", {"a": 1})
        answers = await waiting
    assert [answer.body["delta"] for answer in answers] == [{"a": 1}] * 3
    assert (await service.of_acme("GET", f"{path}?wait_s=61")).status == 400


async def test_who_waits_is_let_go_when_the_process_ends(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        async with device_service(tmp_path / "node") as service:
            await service.of_acme("POST", "/devices", {"device": "pump"})
            waiting = asyncio.ensure_future(
                service.of_acme("GET", "/devices/pump/shadow?wait_s=60", headers={"If-None-Match": '"0-0"'})
            )
            await asyncio.sleep(0.1)
            service.draining.set()
            assert (await waiting).status == 304


async def test_no_more_wait_than_may(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(30),
        device_service(tmp_path / "node", "device.shadow_waiters_max=1") as service,
    ):
        await service.of_acme("POST", "/devices", {"device": "pump"})
        path, known = "/devices/pump/shadow?wait_s=60", {"If-None-Match": '"0-0"'}
        first = asyncio.ensure_future(service.of_acme("GET", path, headers=known))
        second = asyncio.ensure_future(service.of_acme("GET", path, headers=known))
        done, waiting = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert [each.result().status for each in done] == [304]
        await service.of_acme("PATCH", "/devices/pump/shadow/desired", {"a": 1})
        assert [(await each).status for each in waiting] == [200]
