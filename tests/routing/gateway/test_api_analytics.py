from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from yarl import URL

from routing.gateway import analytics, histogram, usage_report
from routing.gateway.analytics import NO_ROUTE, NOBODY, Analytics, Answered, Counts
from routing.gateway.routes_file import Deprecation, Route
from routing.gateway.usage_report import Refused, UsageReports
from routing.gateway.usage_store import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    OTHER,
    Retention,
    Tally,
    UsageStore,
    UsageStoreError,
)
from routing.tenancy.identity import Credential
from routing.tenancy.principal import EVERY_TENANT, Principal
from tests.support.api_documents import LIST, TELEMETRY

NOON_S = 1_700_049_600 // DAY_S * DAY_S + 12 * HOUR_S
ACME = Principal(
    tenant="acme", name="app", scopes=frozenset(), credential=Credential.API_KEY, fingerprint="k1"
)
OPERATOR = Principal(
    tenant=EVERY_TENANT, name="ops", scopes=frozenset(), credential=Credential.JWT, fingerprint="j9"
)
LIMITS = Retention(minutes_s=2 * DAY_S, hours_s=90 * DAY_S, days_s=730 * DAY_S)


def one(**changes: Any) -> Answered:
    plain = Answered(
        route="list",
        tenant="acme",
        fingerprint="k1",
        status=200,
        refused="",
        elapsed_s=0.01,
        bytes_in=10,
        bytes_out=100,
    )
    return msgspec.structs.replace(plain, **changes)


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        self.events.append(event)


class Day:
    """Analytics on a day whose time the test sets."""

    def __init__(self, path: Path, keys_max: int = 100) -> None:
        self.now_s = float(NOON_S)
        self.log = Log()
        self.analytics = Analytics(
            path / "analytics.db",
            keys_max=keys_max,
            retention=LIMITS,
            flush_s=60.0,
            log=self.log,
            now_s=lambda: self.now_s,
        )
        self.deprecations = {"telemetry": Deprecation(since="2026-01-31", sunset="2027-01-31")}
        self.reports = UsageReports(self.analytics, lambda: self.deprecations, lambda: self.now_s)

    async def usage(self, *principal: Principal, **query: str) -> dict[str, Any]:
        return await self._asked(self.reports.usage, (*principal, ACME)[0], query)

    async def deprecated(self, *principal: Principal, **query: str) -> dict[str, Any]:
        return await self._asked(self.reports.deprecated, (*principal, ACME)[0], query)

    async def _asked(self, handler: Any, principal: Principal, query: dict[str, str]) -> dict[str, Any]:
        answer = await handler(Exchange(principal=principal, query=query))
        assert answer.body is not None
        return {"status": answer.status, **msgspec.json.decode(answer.body)}


class Exchange:
    def __init__(
        self,
        *,
        principal: Principal | None = None,
        query: dict[str, str] | None = None,
        route: Route | None = None,
        status: int = 200,
        agent: str = "",
    ) -> None:
        self.principal = principal
        self.route = route
        self.status = status
        self.refused = ""
        self.bytes_in = 1
        self.bytes_out = 2
        target = str(URL("/v1/usage").with_query(query or {}))
        self.request: web.BaseRequest = make_mocked_request("GET", target, headers={"User-Agent": agent})


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path)


async def test_calls_errors_refusals_bytes_and_latency_are_counted(day: Day) -> None:
    for answered in (
        one(),
        one(status=404),
        one(status=429, refused="rate"),
        one(status=503, refused="breaker-open", elapsed_s=1.0),
    ):
        day.analytics.record(answered)
    [row] = (await day.usage())["rows"]
    latency = row.pop("latency_s")
    assert row == {
        "at": "2023-11-15T12:00:00Z",
        "name": "list",
        "calls": 4,
        "client_errors": 2,
        "server_errors": 1,
        "refused": {"breaker-open": 1, "rate": 1},
        "bytes_in": 40,
        "bytes_out": 400,
    }
    assert latency["mean"] == pytest.approx(0.2575)
    assert latency["p50"] == pytest.approx(0.01, rel=0.13)
    assert latency["p99"] == pytest.approx(1.0, rel=0.13)


async def test_rows_are_by_route_key_or_tenant_and_by_minute_hour_or_day(day: Day) -> None:
    day.analytics.record(one())
    day.now_s += 61
    day.analytics.record(one(route="create", fingerprint="k2"))
    day.now_s += HOUR_S
    day.analytics.record(one(tenant="umbrella", fingerprint="k3"))
    day.now_s += 1

    async def names(**query: str) -> list[tuple[str, str]]:
        return [(row["at"][11:16], row["name"]) for row in (await day.usage(OPERATOR, **query))["rows"]]

    assert await names() == [("12:00", "create"), ("12:00", "list"), ("13:00", "list")]
    assert await names(step="minute") == [("12:00", "list"), ("12:01", "create"), ("13:01", "list")]
    assert await names(step="day") == [("00:00", "create"), ("00:00", "list")]
    assert await names(by="key") == [("12:00", "k1"), ("12:00", "k2"), ("13:00", "k3")]
    assert await names(by="tenant", step="day") == [("00:00", "acme"), ("00:00", "umbrella")]
    assert await names(**{"from": "2023-11-15T13:00:00Z"}) == [("13:00", "list")]
    assert await names(to="2023-11-15T13:00:00Z") == [("12:00", "create"), ("12:00", "list")]


async def test_a_caller_sees_its_own_tenant_and_an_operator_each(day: Day) -> None:
    day.analytics.record(one())
    day.analytics.record(one(tenant="umbrella"))
    day.analytics.record(one(tenant="acme2"))
    day.analytics.record(one(tenant="acm"))
    day.now_s += 1

    async def calls(principal: Principal, **query: str) -> Any:
        answer = await day.usage(principal, **query)
        return [row["calls"] for row in answer["rows"]] if answer["status"] == 200 else answer["status"]

    assert await calls(ACME) == [1]
    assert await calls(ACME, tenant="acme") == [1]
    assert await calls(ACME, tenant="umbrella") == 403
    assert await calls(OPERATOR) == [4]
    assert await calls(OPERATOR, tenant="umbrella") == [1]
    assert await calls(OPERATOR, tenant="nobody") == []


async def test_pages_follow_one_another_until_all_was_seen(day: Day) -> None:
    for hour in range(3):
        day.now_s = NOON_S + hour * HOUR_S
        for route in ("a", "b", "c"):
            day.analytics.record(one(route=route))
    day.now_s += 1
    seen: list[tuple[str, str]] = []
    cursor: dict[str, str] = {}
    for _ in range(10):
        answer = await day.usage(limit="2", **cursor)
        seen += [(row["at"], row["name"]) for row in answer["rows"]]
        if answer["next"] is None:
            break
        cursor = {"cursor": answer["next"]}
    assert len(seen) == 9
    assert seen == sorted(set(seen))


async def test_a_page_ends_where_enough_was_read(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_report, "TALLIES_READ_MAX", 2)
    for hour in range(2):
        day.now_s = NOON_S + hour * HOUR_S
        for key in ("a", "b", "c"):
            day.analytics.record(one(fingerprint=key))
    day.now_s += 1
    first = await day.usage()
    assert len(first["rows"]) == 1
    second = await day.usage(cursor=first["next"])
    assert [row["at"][11:13] for row in second["rows"]] == ["13"]


@pytest.mark.parametrize(
    "query",
    [
        {"by": "device"},
        {"step": "week"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "x"},
        {"limit": "\u0661"},
        {"from": "yesterday"},
        {"from": "2026-01-31T00:00:00"},
        {"from": "2026-01-31T00:00:00Z", "to": "2026-01-30T00:00:00Z"},
        {"cursor": "x"},
        {"cursor": "!"},
        {"cursor": "A" * 2000},
        {"cursor": "\u00e9"},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(day: Day, query: dict[str, str]) -> None:
    assert (await day.usage(**query))["status"] in {400, 422}


@given(text=st.text(max_size=100))
def test_any_cursor_is_ours_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert len(usage_report.asked({"cursor": text}, ACME, NOON_S).after) == 4


async def test_use_of_deprecated_routes_is_told_by_key_with_the_last_product(day: Day) -> None:
    day.analytics.record(one())
    old = one(route="telemetry", deprecated=True)
    day.analytics.record(msgspec.structs.replace(old, agent="curl/8.5.0 (x; y)"))
    await day.analytics.flush()
    day.now_s += DAY_S
    day.analytics.record(msgspec.structs.replace(old, agent="sdk/2"))
    day.analytics.record(msgspec.structs.replace(old, fingerprint="k2", agent="<script>"))
    day.analytics.record(msgspec.structs.replace(old, tenant="umbrella", route="gone"))
    day.now_s += 1
    week_ago = {"from": "2023-11-10T00:00:00Z"}
    answer = await day.deprecated(**week_ago)
    row = {"route": "telemetry", "tenant": "acme", "since": "2026-01-31", "sunset": "2027-01-31"}
    assert answer["rows"] == [
        {**row, "key": "k1", "calls": 2, "last_call": "2023-11-16T12:00:00Z", "agent": "sdk/2"},
        {**row, "key": "k2", "calls": 1, "last_call": "2023-11-16T12:00:00Z", "agent": ""},
    ]
    first = await day.deprecated(OPERATOR, limit="2", **week_ago)
    assert [use["route"] for use in first["rows"]] == ["gone", "telemetry"]
    second = await day.deprecated(OPERATOR, limit="2", cursor=first["next"], **week_ago)
    assert [use["key"] for use in second["rows"]] == ["k2"]
    assert second["next"] is None


async def test_counts_survive_a_restart(day: Day, tmp_path: Path) -> None:
    day.analytics.record(one())
    await day.analytics.aclose()
    again = Day(tmp_path)
    again.analytics.record(one())
    again.now_s += 1
    assert [row["calls"] for row in (await again.usage())["rows"]] == [2]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from routing.gateway.analytics import Analytics, Answered
from routing.gateway.usage_store import Retention

async def main():
    analytics = Analytics(Path(sys.argv[1]), keys_max=9, retention=Retention(), flush_s=60, log=None)
    one = Answered(
        route="a", tenant="t", fingerprint="k", status=200, refused="", elapsed_s=1, bytes_in=0, bytes_out=0
    )
    for _ in range(5):
        analytics.record(one)
    await analytics.flush()
    for _ in range(3):
        analytics.record(one)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_process_that_is_killed_loses_what_came_since_the_last_flush(tmp_path: Path) -> None:
    path = tmp_path / "analytics.db"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert ended.returncode == -signal.SIGKILL
    store = UsageStore(path, keys_max=9, retention=LIMITS)
    for step_s in (MINUTE_S, HOUR_S, DAY_S):
        [at_s] = store.times(step_s, 0, 1e12)
        assert [tally.calls for *_, tally in store.tallies(step_s, at_s, "")] == [5]
    store.close()


async def test_keys_above_the_limit_are_counted_as_other(tmp_path: Path) -> None:
    day = Day(tmp_path, keys_max=2)
    for number in range(5):
        day.analytics.record(one(fingerprint=f"k{number}", route="telemetry", deprecated=True))
    await day.analytics.flush()
    day.analytics.record(one(fingerprint="k9", route="telemetry", deprecated=True))
    day.now_s += 1
    rows = (await day.usage(OPERATOR, by="key"))["rows"]
    assert {row["name"]: row["calls"] for row in rows} == {"k0": 1, "k1": 1, OTHER: 4}
    assert len((await day.usage(ACME, by="key"))["rows"]) == 2
    uses = (await day.deprecated(OPERATOR))["rows"]
    assert {use["key"]: use["calls"] for use in uses} == {"k0": 1, "k1": 1, OTHER: 4}


def test_each_step_has_a_limit_of_its_own(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "a.db", keys_max=3, retention=LIMITS)
    for minute in range(5):
        at_s = NOON_S + minute * MINUTE_S
        store.add({(at_s, "list", "acme", f"k{minute}"): Tally(calls=1)}, {}, at_s)
    assert len(store.times(MINUTE_S, 0, 1e12)) == 5
    names = {key: tally.calls for _, _, key, tally in store.tallies(HOUR_S, NOON_S, "")}
    assert names == {"k0": 1, "k1": 1, "k2": 1, OTHER: 2}
    store.close()


def test_what_is_old_is_forgotten_step_by_step(tmp_path: Path) -> None:
    store = UsageStore(tmp_path / "a.db", keys_max=9, retention=LIMITS)
    key = ("list", "acme", "k1")
    day_s = NOON_S // DAY_S * DAY_S
    store.add({(NOON_S, *key): Tally(calls=1)}, {(day_s, *key): (1, NOON_S, "")}, NOON_S)

    def kept(later_s: int) -> list[bool]:
        store.add({}, {}, NOON_S + later_s)
        uses = store.deprecated(0, 1e12, "", ("", "", ""), 10)
        return [*(bool(store.times(step_s, 0, 1e12)) for step_s in (MINUTE_S, HOUR_S, DAY_S)), bool(uses)]

    assert kept(2 * DAY_S) == [True, True, True, True]
    assert kept(2 * DAY_S + 120) == [False, True, True, True]
    assert kept(91 * DAY_S) == [False, False, True, True]
    assert kept(732 * DAY_S) == [False, False, False, False]
    store.close()


async def test_what_cannot_be_written_is_kept_for_the_next_time(day: Day, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "analytics.db", isolation_level=None)
    day.analytics._store._connection.execute("PRAGMA busy_timeout = 0")
    other.execute("BEGIN IMMEDIATE")
    day.analytics.record(one(route="telemetry", deprecated=True))
    await day.analytics.flush()
    assert day.log.events == ["usage_not_written"]
    day.analytics.record(one(route="telemetry", deprecated=True))
    await day.analytics.flush()
    other.execute("ROLLBACK")
    other.close()
    day.now_s += 1
    assert [row["calls"] for row in (await day.usage())["rows"]] == [2]
    assert [use["calls"] for use in (await day.deprecated())["rows"]] == [2]


async def test_a_file_that_cannot_be_read_is_said(day: Day) -> None:
    day.analytics._store.close()
    answer = await day.usage()
    assert (answer["status"], answer["type"]) == (503, "urn:headworks:problem:usage-not-readable")


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "analytics.db").write_bytes(b"something else" * 100)
    with pytest.raises(UsageStoreError, match="cannot open"):
        UsageStore(tmp_path / "analytics.db", keys_max=1, retention=LIMITS)


async def test_the_driver_writes_every_so_often_and_ends_when_cancelled(tmp_path: Path) -> None:
    made = Analytics(tmp_path / "a.db", keys_max=9, retention=LIMITS, flush_s=0.01, log=Log())
    made.record(one())
    reader = UsageStore(tmp_path / "a.db", keys_max=9, retention=LIMITS)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.run())
        while not await asyncio.to_thread(reader.times, MINUTE_S, 0, 1e12):
            await asyncio.sleep(0.01)
        running.cancel()
    await made.aclose()
    reader.close()


def test_a_key_is_one_that_lives_and_the_tenant_the_callers() -> None:
    def counted(principal: Principal | None, route: Route | None = LIST) -> tuple[str, str, str]:
        found = analytics.answered(Exchange(principal=principal, route=route), 0.5)
        return found.route, found.tenant, found.fingerprint

    assert counted(ACME) == ("list", "acme", "k1")
    assert counted(OPERATOR) == ("list", EVERY_TENANT, "ops")
    assert counted(None, None) == (NO_ROUTE, NOBODY, NOBODY)
    old = analytics.answered(Exchange(principal=ACME, route=TELEMETRY, agent="curl/8"), 0.5)
    assert (old.deprecated, old.agent, old.bytes_in, old.bytes_out, old.elapsed_s) == (
        True,
        "curl/8",
        1,
        2,
        0.5,
    )
    assert analytics.answered(Exchange(principal=ACME, route=LIST, agent="curl/8"), 0.5).agent == ""


@pytest.mark.parametrize(
    ("agent", "product"),
    [
        ("curl/8.5.0", "curl/8.5.0"),
        ("Mozilla/5.0 (X11)", "Mozilla/5.0"),
        ("plain", "plain"),
        ("", ""),
        ("<b>", ""),
        ("a" * 500, "a" * 40),
    ],
)
def test_of_a_user_agent_the_product_is_kept(agent: str, product: str) -> None:
    assert analytics.product(agent) == product


def test_reasons_of_refusals_have_a_limit() -> None:
    counts = Counts(10)
    for number in range(100):
        counts.record(one(refused=f"r{number}"), NOON_S)
    [tally] = counts.take()[0].values()
    assert len(tally.refused) == analytics.REASONS_MAX
    assert counts.take() == ({}, {})


COUNTS = st.dictionaries(st.integers(0, histogram.BUCKETS - 1), st.integers(1, 1000), max_size=8)


@given(parts=st.lists(COUNTS, max_size=5))
def test_merging_loses_nothing_and_does_not_depend_on_order(parts: list[dict[int, int]]) -> None:
    total = histogram.merged(parts)
    assert sum(total.values()) == sum(sum(part.values()) for part in parts)
    assert histogram.merged(reversed(parts)) == total
    assert histogram.merged([histogram.merged(parts[:2]), histogram.merged(parts[2:])]) == total


@given(latencies=st.lists(st.floats(1e-4, 100), min_size=1, max_size=200), share=st.floats(0, 1))
def test_a_quantile_is_at_most_12_percent_off(latencies: list[float], share: float) -> None:
    counts = histogram.merged({histogram.bucket(latency): 1} for latency in latencies)
    rank = max(1, -(-share * len(latencies) // 1))
    exact = sorted(latencies)[int(rank) - 1]
    assert histogram.quantile_s(counts, share) == pytest.approx(exact, rel=0.1181)


@given(first=COUNTS, second=COUNTS, share=st.floats(0, 1))
def test_a_quantile_of_a_sum_lies_between_those_of_its_parts(
    first: dict[int, int], second: dict[int, int], share: float
) -> None:
    both = histogram.quantile_s(histogram.merged([first, second]), share)
    each = [histogram.quantile_s(part, share) for part in (first, second) if part]
    assert not each or min(each) <= both <= max(each)


def test_what_is_out_of_range_is_in_the_first_or_last_bucket() -> None:
    assert histogram.bucket(0.0) == 0
    assert histogram.bucket(-1.0) == 0
    assert histogram.bucket(1e9) == histogram.BUCKETS - 1
    assert histogram.quantile_s({}, 0.5) == 0.0


@given(
    st.lists(
        st.builds(
            Tally,
            calls=st.integers(0, 9),
            refused=st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)),
            latencies=COUNTS,
        ),
        max_size=4,
    )
)
def test_tallies_add_up(tallies: list[Tally]) -> None:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    assert total.calls == sum(tally.calls for tally in tallies)
    assert total.latencies == histogram.merged(tally.latencies for tally in tallies)
    assert sum(total.refused.values()) == sum(sum(tally.refused.values()) for tally in tallies)
