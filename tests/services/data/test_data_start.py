"""What keeps the data service from starting, and what keeps it from erasing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from runtime.logs import make_log
from runtime.settings_file import SettingsError
from services import settings
from services.data.app import made
from services.web.passport import PassportVerifier
from services.web.process import StartError
from tests.support.data_service import data_service
from tests.support.feeds import group, payload


async def start(folder: Path, *overrides: str) -> None:
    config = folder / "services.toml"
    config.write_text(f'[service]\ndata_dir = "{folder}"\n')
    verifier = PassportVerifier(folder / "passport.pub", audience="data")
    found = settings.load(config, overrides)
    async with made(found, verifier, asyncio.Event(), make_log("error", "json")):
        pass


async def test_it_must_be_told_where_the_sink_is(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"feed\.file"):
        await start(tmp_path)


async def test_kinesis_must_have_a_stream_and_a_region(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"feed\.source"):
        await start(tmp_path, 'feed.source="kinesis"', 'feed.stream="telemetry"')


async def test_a_warehouse_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "warehouse.duckdb").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StartError, match=r"warehouse\.duckdb"):
        await start(tmp_path, f'feed.file="{tmp_path}/local.db"')


async def test_it_starts_and_stops_while_kinesis_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    where = ('feed.stream="s"', 'feed.region="eu-central-1"', 'feed.endpoint="http://127.0.0.1:1"')
    async with asyncio.timeout(20):
        await start(tmp_path, 'feed.source="kinesis"', *where)


async def test_nothing_is_erased_when_the_sink_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.data.api.series.SINK_DEADLINE_S", 0.05)
    async with data_service(tmp_path / "node") as service:
        await service.has(group(1, [payload(1)]), group(2, [payload(2)], device="pump-2"))
        with contextlib.closing(sqlite3.connect(service.sink, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = await service.of("pump-1", method="DELETE")
            assert (refused.status, refused.slug) == (503, "unavailable")
            other.execute("ROLLBACK")
        assert len((await service.of("pump-1")).body["items"]) == 1
        assert (await service.of("pump-1", method="DELETE")).body == {"records": 1}


async def test_a_device_is_erased_before_there_is_a_sink(tmp_path: Path) -> None:
    async with data_service(tmp_path / "node") as service:
        assert (await service.of("pump-1", method="DELETE")).body == {"records": 0}
