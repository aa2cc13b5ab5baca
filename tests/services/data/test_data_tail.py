"""Live streams over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.records import Encoding
from tests.support.data_service import Service, data_service, lines
from tests.support.feeds import group, payload


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with data_service(tmp_path / "node", "data.tails_max=2", "data.recent_bytes_max=65536") as opened:
        yield opened


def ids(found: list[dict[str, object]]) -> list[object]:
    return [each["id"] for each in found]


async def test_records_come_as_they_are_stored_and_only_the_tenants(service: Service) -> None:
    await service.has(group(1, [payload(0)]))
    async with service.tail() as response:
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        await response.content.readline()
        await service.has(
            group(2, [payload(1)], tenant="other"),
            group(3, [payload(2), payload(3)]),
            group(4, [b"\x00\xff"], stream="blobs", encoding=Encoding.RAW),
        )
        found = await lines(response, 3)
    assert ids(found) == ["n1-b1-3-0", "n1-b1-3-1", "n1-b1-4-0"]
    assert found[0] == {
        "id": "n1-b1-3-0",
        "tenant": "acme",
        "device": "pump-1",
        "stream": "main",
        "received_at": 1_764_000_000_000,
        "payload": {"ts": 1002, "seq": 2, "metrics": {"temperature": 1.0}},
    }
    assert found[2]["payload"] == "AP8="


async def test_it_goes_on_behind_a_record_from_memory_and_from_the_warehouse(service: Service) -> None:
    await service.has(group(1, [payload(seq) for seq in range(700)]))
    expected = [f"n1-b1-1-{seq}" for seq in range(700)]
    for after in (3, 690):  # 64 KiB is some hundred records
        async with service.tail(after=expected[after]) as response:
            found = await lines(response, len(expected) - after - 1)
            assert ids(found) == expected[after + 1 :]
            await service.has(group(after, [payload(0)]))
            expected.append(f"n1-b1-{after}-0")
            assert ids(await lines(response, 1)) == expected[-1:]


async def test_a_record_that_nobody_knows_is_now(service: Service) -> None:
    await service.has(group(1, [payload(0)]))
    async with service.tail(after="nobody-knows") as response:
        await response.content.readline()
        await service.has(group(2, [payload(1)]))
        assert ids(await lines(response, 1)) == ["n1-b1-2-0"]


async def test_silence_is_broken_by_an_empty_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.data.tails.QUIET_S", 0.02)
    async with asyncio.timeout(10), service.tail() as response:
        assert [await response.content.readline() for _ in range(4)] == [b"\n"] * 4


async def test_a_tenant_hears_its_own_and_only_with_the_scope(service: Service) -> None:
    for claims, slug in (
        ({"tenant": "acme", "scopes": "live:read"}, "missing-scope"),
        ({"tenant": "acme", "device": "pump-1"}, "foreign-device"),
    ):
        answer = await service.ask("/tail", params={"tenant": "acme"}, **claims)
        assert (answer.status, answer.slug) == (403, slug)
    answer = await service.ask("/tail", params={"tenant": "other"}, tenant="acme")
    assert (answer.status, answer.slug) == (403, "foreign-tenant")
    async with service.tail("other", whose="*") as response:
        assert response.status == 200


async def test_there_are_only_so_many_and_those_that_leave_make_room(service: Service) -> None:
    async with service.tail() as first:
        await first.content.readline()
        async with service.tail() as second:
            await second.content.readline()
            async with service.tail() as refused:
                assert refused.status == 503
    async with asyncio.timeout(10):
        while await service.metric("data_tails"):
            await asyncio.sleep(0.02)
    async with service.tail() as third:
        assert third.status == 200


async def test_streams_end_when_the_service_does(service: Service) -> None:
    async with service.tail() as response:
        await response.content.readline()
        service.draining.set()
        async with asyncio.timeout(5):
            assert await response.content.read() == b""


async def test_who_reads_nothing_is_put_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.data.api.tail.UNREAD_S", 0.05)
    async with service.tail() as response:
        await response.content.readline()
        large = [payload(seq, note="x" * 1000) for seq in range(1000)]
        for number in range(1, 13):
            await service.has(group(number, large))
        async with asyncio.timeout(10):
            while await service.metric("data_tails"):
                await asyncio.sleep(0.02)
