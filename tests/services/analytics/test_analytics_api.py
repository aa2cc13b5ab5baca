from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime import clock
from services.analytics.app import operations
from services.web.process import StartError
from tests.support.analytics_service import AnalyticsClient, analytics_service

DAY_MS = 86_400_000
NOW_MS = clock.unix_ms() // DAY_MS * DAY_MS - DAY_MS // 3
"""Four in the afternoon of yesterday: windows of that time are kept."""


ROLLUPS = "devices/pump-1/rollups?metric=temperature"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[AnalyticsClient]:
    async with analytics_service(tmp_path / "node", "analytics.anomaly_warm_up=10") as opened:
        yield opened


def readings(count: int, *, step_ms: int = 1000, **metrics: Any) -> list[dict[str, Any]]:
    """Return readings a second apart from `NOW_MS` on, whose temperature counts up from 0."""
    return [
        {"ts": NOW_MS + index * step_ms, "metrics": {"temperature": float(index), **metrics}}
        for index in range(count)
    ]


async def test_telemetry_is_read_back_as_a_roll_up(service: AnalyticsClient) -> None:
    service.send(*readings(60, ok=True, mode="auto"), received_at_ms=NOW_MS + 60_000)
    body = await service.until(ROLLUPS, lambda found: bool(found["items"]))
    [window] = body["items"]
    assert (window["start"], window["end"]) == (NOW_MS, NOW_MS + 60_000)
    assert (window["count"], window["texts"], window["final"]) == (60, 0, False)
    assert window["first"] == {"ts": NOW_MS, "value": 0.0}
    assert window["last"] == {"ts": NOW_MS + 59_000, "value": 59.0}
    assert window["rate_per_s"] == 1.0
    statistics = window["statistics"]
    quantiles = {each["q"]: each["value"] for each in statistics.pop("quantiles")}
    assert statistics == pytest.approx(
        {"min": 0.0, "max": 59.0, "sum": 1770.0, "mean": 29.5, "variance": 299.9166666}
    )
    assert quantiles == pytest.approx({0.5: 29.0, 0.9: 53.0, 0.99: 58.0}, rel=0.01)

    [flag] = (await service.get("devices/pump-1/rollups?metric=ok&q=0")).body["items"]
    assert (flag["statistics"]["sum"], flag["statistics"]["quantiles"]) == (60.0, [{"q": 0.0, "value": 1.0}])
    [text] = (await service.get("devices/pump-1/rollups?metric=mode")).body["items"]
    assert (text["count"], text["texts"], text["statistics"], text["last"]) == (0, 60, None, None)


async def test_windows_come_in_pages_of_any_size_and_of_a_range(service: AnalyticsClient) -> None:
    service.send(*readings(20, step_ms=60_000), received_at_ms=NOW_MS + 1_200_000)
    await service.until(ROLLUPS, lambda found: len(found["items"]) == 20)
    coarse = (await service.get(f"{ROLLUPS}&window=5m")).body["items"]
    assert [window["count"] for window in coarse] == [5, 5, 5, 5]
    assert [
        (await service.get(f"{ROLLUPS}&window={size}")).body["items"][0]["count"] for size in ("1h", "1d")
    ] == [
        20,
        20,
    ]
    found, cursor = [], ""
    while True:
        page = (await service.get(f"{ROLLUPS}&limit=7&cursor={cursor}")).body
        found += [window["start"] for window in page["items"]]
        assert len(page["items"]) <= 7
        if not (cursor := page["next"]):
            break
    assert len(set(found)) == 20
    assert found == sorted(found)
    ranged = f"{ROLLUPS}&from={NOW_MS + 330_000}&to={NOW_MS + 480_000}"
    starts = [window["start"] - NOW_MS for window in (await service.get(ranged)).body["items"]]
    assert starts == [300_000, 360_000, 420_000]
    for to_ms, count in ((NOW_MS, 0), (NOW_MS + 1, 1), (NOW_MS + 60_000, 1)):
        assert len((await service.get(f"{ROLLUPS}&to={to_ms}")).body["items"]) == count


async def test_streams_are_merged_unless_one_is_named(service: AnalyticsClient) -> None:
    for stream, value in (("one", 1.0), ("two", 3.0)):
        sent = [{"ts": NOW_MS + minute * 60_000, "metrics": {"temperature": value}} for minute in range(5)]
        service.send(*sent, stream=stream, received_at_ms=NOW_MS + 300_000)
    merged = await service.until(ROLLUPS, lambda found: [w["count"] for w in found["items"]] == [2] * 5)
    assert [window["statistics"]["mean"] for window in merged["items"]] == [2.0] * 5
    page = (await service.get(f"{ROLLUPS}&limit=2")).body
    assert [window["count"] for window in page["items"]] == [2, 2]
    one = (await service.get(f"{ROLLUPS}&stream=two")).body["items"]
    assert [window["statistics"]["mean"] for window in one] == [3.0] * 5
    assert (await service.get(f"{ROLLUPS}&stream=three")).status == 404


async def test_the_roll_up_of_a_tenant_is_of_all_numbers_of_all_its_devices(service: AnalyticsClient) -> None:
    for index in range(10):
        sent = {"ts": NOW_MS + index, "metrics": {"temperature": float(index * 10)}}
        service.send(sent, device=f"pump-{index}", received_at_ms=NOW_MS)
    service.send({"ts": NOW_MS, "metrics": {"temperature": 1e6}}, tenant="other", received_at_ms=NOW_MS)
    body = await service.until(
        "rollups?metric=temperature&q=0.5&q=1",
        lambda found: found["items"][0]["count"] == 10,
    )
    [window] = body["items"]
    assert "last" not in window
    assert window["statistics"]["max"] == 90.0
    assert [each["value"] for each in window["statistics"]["quantiles"]] == pytest.approx(
        [40.0, 90.0], rel=0.01
    )
    body = (await service.get("metrics")).body
    assert body["items"] == [{"metric": "temperature", "stream": "main", "last_ts": NOW_MS + 9}]


async def test_a_window_becomes_final_and_what_comes_later_is_dropped_by_name(
    service: AnalyticsClient,
) -> None:
    service.send({"ts": NOW_MS, "metrics": {"temperature": 1.0}}, received_at_ms=NOW_MS)
    later = {"ts": NOW_MS + 3_660_000, "metrics": {"temperature": 2.0}}
    service.send(later, received_at_ms=NOW_MS + 3_660_000)
    body = await service.until(ROLLUPS, lambda found: len(found["items"]) == 2)
    assert [window["final"] for window in body["items"]] == [True, False]
    late = [{"ts": NOW_MS + ms, "metrics": {"temperature": 99.0}} for ms in (0, 61_000)]
    service.send(
        *late, {"ts": NOW_MS + 10**9, "metrics": {"temperature": 9.0}}, received_at_ms=NOW_MS + 3_660_000
    )
    marked = await service.until("devices/pump-1/watermark", lambda found: bool(found["dropped"]))
    assert marked == {
        "latest_ts": NOW_MS + 3_660_000,
        "final_until": NOW_MS + 60_000,
        "dropped": {"late": 1, "future": 1},
    }
    counts = [window["count"] for window in (await service.get(ROLLUPS)).body["items"]]
    assert counts == [1, 1, 1], "what is late and inside of the lateness corrects its window"
    assert await service.metric('headworks_analytics_dropped_total{reason="late"}') == 1
    assert await service.metric("headworks_analytics_folded_total") == 3
    assert await service.metric("headworks_feed_records_total") == 5


async def test_scores_are_of_the_last_number_and_anomalies_are_listed_newest_first(
    service: AnalyticsClient,
) -> None:
    usual = [{"ts": NOW_MS + n * 1000, "metrics": {"a": 20.0 + n % 3, "b": 5.0 + n % 2}} for n in range(30)]
    for number, device in enumerate(("pump-1", "pump-2", "pump-3")):
        spike = {"ts": NOW_MS + 40_000 + number, "metrics": {"a": 90.0, "b": 5.0}}
        service.send(*usual, spike, device=device, received_at_ms=NOW_MS + 60_000)
    service.send(
        {"ts": NOW_MS + 41_000, "metrics": {"a": 21.0}}, device="pump-1", received_at_ms=NOW_MS + 60_000
    )
    body = await service.until(
        "devices/pump-1/series",
        lambda found: found["items"] and found["items"][0]["last_ts"] == NOW_MS + 41_000,
    )
    a, b = body["items"]
    assert (a["metric"], a["last"], a["anomalies"]) == ("a", 21.0, 1)
    assert abs(a["sigma"]) < 1
    assert 0 <= a["score"] < 0.7
    assert (b["anomaly"], b["anomalies"]) == (None, 0)
    assert a["anomaly"]["value"] == 90.0
    assert a["anomaly"]["sigma"] > 50
    assert a["anomaly"]["score"] == 1

    found, cursor = [], ""
    while True:
        page = (await service.get(f"anomalies?limit=2&cursor={cursor}")).body
        found += [(each["device"], each["metric"]) for each in page["items"]]
        if not (cursor := page["next"]):
            break
    assert found == [("pump-3", "a"), ("pump-2", "a"), ("pump-1", "a")]
    since = (await service.get(f"anomalies?from={NOW_MS + 40_001}")).body["items"]
    assert [each["device"] for each in since] == ["pump-3", "pump-2"]
    assert (await service.get("anomalies?sigma_min=900")).body["items"] == []
    first = (await service.get("devices/pump-1/series?limit=1")).body
    second = (await service.get(f"devices/pump-1/series?limit=1&cursor={first['next']}")).body
    assert [first["items"][0]["metric"], second["items"][0]["metric"], second["next"]] == ["a", "b", ""]


async def test_limits_on_devices_and_series_are_kept_and_named(tmp_path: Path) -> None:
    limits = ("analytics.devices_max=2", "analytics.series_max=2", "analytics.metrics_max=3")
    async with analytics_service(tmp_path / "node", *limits) as service:
        for index in range(3):
            sent = {"ts": NOW_MS, "metrics": {f"m{index}": 1.0, "x": 1.0, "y": 1.0}}
            service.send(sent, device=f"pump-{index}", received_at_ms=NOW_MS)
        await service.until_metric("headworks_analytics_records_total", 3)
        dropped = {
            reason: await service.metric(f'headworks_analytics_dropped_total{{reason="{reason}"}}')
            for reason in ("too_many_devices", "too_many_series", "too_many_metrics")
        }
        assert dropped == {"too_many_devices": 3.0, "too_many_series": 2.0, "too_many_metrics": 0.0}


async def test_a_restart_changes_nothing_and_goes_on_behind_what_was_taken(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    async with analytics_service(folder) as service:
        service.send(*readings(10), received_at_ms=NOW_MS)
        before = await service.until(ROLLUPS, lambda found: bool(found["items"]))
    async with analytics_service(folder) as service:
        assert (await service.get(ROLLUPS)).body == before
        assert await service.metric("headworks_analytics_folded_total") == 10
        await service.until_metric("headworks_analytics_devices", 1)
        assert await service.metric("headworks_analytics_series") == 2
        assert await service.metric("headworks_analytics_bytes") > 10_000
        service._groups = 1
        service.send(*readings(3), received_at_ms=NOW_MS)
        after = await service.until(ROLLUPS, lambda found: found["items"][0]["count"] != 10)
        assert after["items"][0]["count"] == 13


async def test_what_is_past_its_time_goes_when_the_service_starts(tmp_path: Path) -> None:
    folder, then_ms = tmp_path / "node", NOW_MS - 5 * DAY_MS
    async with analytics_service(folder) as service:
        service.send({"ts": then_ms, "metrics": {"temperature": 1.0}}, received_at_ms=then_ms)
        await service.until(ROLLUPS, lambda found: bool(found["items"]))
    async with analytics_service(folder) as service:
        await service.until_metric("headworks_analytics_series", 2)
        assert (await service.get(ROLLUPS)).body["items"] == []
        assert len((await service.get(f"{ROLLUPS}&window=5m")).body["items"]) == 1


async def test_a_sweep_that_fails_is_counted_and_the_service_goes_on(tmp_path: Path) -> None:
    folder, then_ms = tmp_path / "node", NOW_MS - 5 * DAY_MS
    async with analytics_service(folder) as service:
        service.send({"ts": then_ms, "metrics": {"temperature": 1.0}}, received_at_ms=then_ms)
        await service.until(ROLLUPS, lambda found: bool(found["items"]))
    with contextlib.closing(sqlite3.connect(folder / "analytics.db", isolation_level=None)) as other:
        other.execute("CREATE TRIGGER kept BEFORE DELETE ON rollups BEGIN SELECT RAISE(ABORT, 'kept'); END")
    async with analytics_service(folder) as service:
        await service.until_metric("headworks_analytics_store_troubles_total", 1)
        service._groups = 1
        service.send(*readings(3), received_at_ms=NOW_MS)
        await service.until(ROLLUPS, lambda found: len(found["items"]) == 2)


async def test_what_is_of_a_device_is_erased_and_nothing_else(service: AnalyticsClient) -> None:
    for device in ("pump-1", "pump-2"):
        service.send(*readings(3), device=device, received_at_ms=NOW_MS)
    await service.until("rollups?metric=temperature", lambda found: found["items"][0]["count"] == 6)
    answer = await service.get("devices/pump-1/rollups", method="DELETE")
    assert (answer.status, answer.body) == (200, {"rollups": 4})
    assert (await service.get(ROLLUPS)).status == 404
    assert (await service.get("devices/pump-1/watermark")).body["latest_ts"] is None
    assert (await service.get("devices/pump-1/series")).body["items"] == []
    assert (await service.get(ROLLUPS.replace("pump-1", "pump-2"))).status == 200
    assert (await service.get("rollups?metric=temperature")).body["items"][0]["count"] == 6


async def test_a_file_that_takes_no_batch_is_tried_again_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.analytics.consumer.RETRY_S", 0.05)
    folder = tmp_path / "node"
    async with analytics_service(folder) as service:
        with contextlib.closing(sqlite3.connect(folder / "analytics.db", isolation_level=None)) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON rollups BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
            service.send(*readings(5), received_at_ms=NOW_MS)
            await service.until_metric("headworks_analytics_store_troubles_total", 2)
            assert (await service.get(ROLLUPS)).status == 404
            other.execute("DROP TRIGGER full")
        body = await service.until(ROLLUPS, lambda found: bool(found["items"]))
        assert body["items"][0]["count"] == 5


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("devices/pump-1/rollups", "metric"),
        (f"{ROLLUPS}&window=week", "window"),
        (f"{ROLLUPS}&from=yesterday", "from"),
        (f"{ROLLUPS}&from=-1", "from"),
        (f"{ROLLUPS}&q=1.5", "q"),
        (f"{ROLLUPS}&q=1" + "&q=1" * 8, "q"),
        (f"{ROLLUPS}&limit=1001", "limit"),
        (f"{ROLLUPS}&page=2", "page"),
        ("anomalies?sigma_min=-1", "sigma_min"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(service: AnalyticsClient, path: str, why: str) -> None:
    answer = await service.get(path)
    assert (answer.status, answer.slug) == (400, "invalid-request")
    assert why in answer.body["detail"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("window=7m", "window: one of 1m, 5m, 1h, 1d"),
        ("from=2000&to=1000", "to: before from"),
    ],
)
async def test_what_a_document_cannot_say_is_refused_by_name(
    service: AnalyticsClient, more: str, why: str
) -> None:
    answer = await service.get(f"{ROLLUPS}&{more}")
    assert (answer.status, answer.body["detail"]) == (422, why)


@pytest.mark.parametrize("path", [ROLLUPS, "anomalies", "devices/pump-1/series", "metrics"])
async def test_a_cursor_of_another_list_is_refused_and_none_is_an_error_of_ours(
    service: AnalyticsClient, path: str
) -> None:
    service.send(*readings(1), received_at_ms=NOW_MS)
    await service.until(ROLLUPS, lambda found: bool(found["items"]))
    separator = "&" if "?" in path else "?"
    for cursor in ("nonsense", "zw__________", "ks__________z_________8", "kqFhoWI", "0oAAAAA"):
        assert (await service.get(f"{path}{separator}cursor={cursor}")).status in {200, 422}


async def test_nobody_gets_in_without_the_scope_or_to_another_tenant(service: AnalyticsClient) -> None:
    for operation in operations():
        path = operation.path.format(tenant="acme", device="pump-1")
        for claims, status in (
            ({"scopes": "devices:read"}, 403),
            ({"tenant": "other"}, 403),
            ({"device": "pump-2"}, 403),
        ):
            answer = await service.get(path, method=operation.method, **claims)
            assert answer.status == status, (operation.name, claims)


async def test_a_service_without_a_stream_or_with_rules_that_clash_does_not_start(tmp_path: Path) -> None:
    for override, why in (
        ('feed.file=""', "feed.file"),
        ("analytics.future_s=4000", "analytics.future_s"),
        ("analytics.anomaly_warm_up=300", "analytics.anomaly_warm_up"),
    ):
        with pytest.raises(StartError, match=why):
            async with analytics_service(tmp_path / "node", override):
                pytest.fail("it starts")
    (tmp_path / "node" / "analytics.db").write_bytes(b"something else" * 100)
    with pytest.raises(StartError, match=r"cannot open .*analytics\.db"):
        async with analytics_service(tmp_path / "node"):
            pytest.fail("it starts")
