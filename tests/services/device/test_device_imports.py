"""Bulk imports: every line counts once, twice is once, and a restart loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.tenancy.registry import Registry
from runtime.logs import make_log
from services.device.fleet import Fleet
from services.device.import_lines import LINE_BYTES_MAX, BadLine, columns_of, parse
from services.device.importer import BATCH, FAILURES_MAX, Importer, ImportLimits
from services.device.store.database import Database
from services.device.store.details import DetailsTable
from services.device.store.groups import GroupTable
from services.device.store.imports import ImportRow, ImportStatus, ImportTable
from services.device.store.shadows import ShadowTable
from services.web.refusal import Refused
from tests.support.device_service import Service, device_service

NDJSON = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}


async def ended(service: Service, identifier: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found = await service.of_acme("GET", f"/imports/{identifier}")
            if found.body["status"] in {"finished", "failed"}:
                return dict(found.body)
            await asyncio.sleep(0.02)


async def imported(service: Service, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    taken = await service.of_acme("POST", "/imports", data=body, headers=headers)
    assert taken.status == 202, taken
    assert taken.headers["Location"].endswith(taken.body["id"])
    return await ended(service, taken.body["id"])


async def test_an_import_says_which_lines_failed_and_why(service: Service) -> None:
    await service.of_acme("POST", "/groups", {"group": "roof"})
    lines = [
        b'{"device": "a", "attributes": {"model": "X"}, "groups": ["roof"]}',
        b'{"device": "bad name"}',
        b"",
        b'{"device": "b", "colour": 1}',
        b'{"device": "c", "groups": ["none"]}',
        b"nonsense",
        b'{"device": ".."}',
        b'{"device": "d"}' + b" " * LINE_BYTES_MAX,
        b'{"device": "e"}',
    ]
    result = await imported(service, b"\n".join(lines), NDJSON)
    assert (result["status"], result["lines"], result["done"], result["failed"]) == ("finished", 9, 2, 6)
    assert [failure["line"] for failure in result["failures"]] == [2, 4, 5, 6, 7, 8]
    reasons = [failure["reason"] for failure in result["failures"]]
    assert reasons[0].startswith("device: ")
    assert "colour" in reasons[1]
    assert reasons[2:] == [
        "there is no group none; make it first",
        "not JSON",
        "device: does not match [A-Za-z0-9._~:@=-]{1,128}",
        "longer than 16384 bytes",
    ]
    found = (await service.of_acme("GET", "/devices/a")).body
    assert (found["attributes"], found["groups"]) == ({"model": "X"}, ["roof"])


async def test_csv_names_its_columns(service: Service) -> None:
    await service.of_acme("POST", "/groups", {"group": "roof"})
    await service.of_acme("POST", "/groups", {"group": "east"})
    body = (
        b"\xef\xbb\xbfdevice,model,groups,note\r\n"
        b'a,X1,roof;east,"with, comma"\r\n'
        b"b,,,\r\n"
        b"c,too,few\r\n"
        b'd,"open,x,y\r\n'
    )
    result = await imported(service, body, CSV)
    assert (result["done"], result["failed"]) == (2, 2)
    assert [failure["line"] for failure in result["failures"]] == [4, 5]
    found = (await service.of_acme("GET", "/devices/a")).body
    assert found["attributes"] == {"model": "X1", "note": "with, comma"}
    assert found["groups"] == ["east", "roof"]
    assert (await service.of_acme("GET", "/devices/b")).body["attributes"] == {}
    for head in (b"name,model\n", b"device,device\n", b"device,\n", b"", b"device,\xff\n"):
        result = await imported(service, head + b"a,b\n", CSV)
        assert result["status"] == "failed"
        assert result["failures"][0]["line"] == 1


async def test_the_same_request_is_the_same_import(service: Service) -> None:
    headers = {**NDJSON, "Idempotency-Key": "once"}
    answers = [
        await service.of_acme("POST", "/imports", data=b'{"device": "a"}', headers=headers) for _ in range(2)
    ]
    assert answers[0].body["id"] == answers[1].body["id"]
    other = await service.of_acme("POST", "/imports", data=b'{"device": "a"}', headers=NDJSON)
    assert other.body["id"] != answers[0].body["id"]
    await ended(service, other.body["id"])
    listed = (await service.of_acme("GET", "/imports")).body["items"]
    assert [each["id"] for each in listed] == [other.body["id"], answers[0].body["id"]]
    foreign = await service.call("GET", f"/v1/tenants/beta/imports/{other.body['id']}", tenant="*")
    assert foreign.status == 404


async def test_a_body_of_another_type_or_too_large_is_refused_and_not_kept(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node", "device.import_bytes_max=100") as service:
        refused = await service.of_acme("POST", "/imports", {"device": "a"})
        assert refused.status == 415

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b" " * 50

        for data in (b" " * 101, pieces()):
            refused = await service.of_acme("POST", "/imports", data=data, headers=NDJSON)
            assert (refused.status, refused.slug) == (413, "body-too-large")
        assert list((service.folder / "imports").iterdir()) == []


async def test_a_large_import_counts_every_failure_and_names_the_first(service: Service) -> None:
    count = 2 * BATCH + 7
    body = b"\n".join(b'{"device": "d%d"}' % n if n % 2 else b'{"bad": %d}' % n for n in range(count))
    result = await imported(service, body, NDJSON)
    assert (result["lines"], result["done"]) == (count, count // 2)
    assert (result["failed"], len(result["failures"])) == (count - count // 2, FAILURES_MAX)
    assert service.registry.device_count("acme") == count // 2
    assert list((service.folder / "imports").iterdir()) == []


async def test_a_tenant_gets_no_more_devices_by_import(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node", "device.devices_max=3") as service:
        body = b"\n".join(b'{"device": "d%d"}' % n for n in (0, 0, 1, 2, 3, 1))
        result = await imported(service, body, NDJSON)
        assert (result["done"], result["failed"]) == (5, 1)
        assert result["failures"][0]["line"] == 5


class Offline:
    """An importer whose work a test does step by step, as a process that may end at any time."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder / "registry.db")
        self.registry.add_tenant("acme", "default", 1.0)
        self.database = Database(folder / "device.db")
        self.details = DetailsTable(self.database)
        self.groups = GroupTable(self.database)
        self.groups.add("acme", "g", "", 1.0)
        fleet = Fleet(
            self.registry,
            self.database,
            self.details,
            self.groups,
            ShadowTable(self.database),
            devices_max=10_000,
        )
        self.table = ImportTable(self.database)
        limits = ImportLimits(bytes_max=1 << 20, waiting_max=4, kept_max=2)
        self.importer = Importer(folder / "imports", self.table, fleet, limits, make_log("error", "json"))

    async def take(self, body: bytes) -> ImportRow:
        async def pieces() -> AsyncIterator[bytes]:
            yield body

        return await self.importer.take("acme", "ndjson", pieces(), request_key="", actor="x")

    async def run_until_idle(self) -> None:
        async with asyncio.timeout(30):
            running = asyncio.ensure_future(self.importer.run())
            while self.table.open():
                await asyncio.sleep(0.001)
            running.cancel()

    def state(self) -> list[tuple[object, ...]]:
        return [
            (
                row.name,
                self.details.find("acme", row.name).attributes,
                self.groups.of_device("acme", row.name),
            )
            for row in self.registry.devices("acme")
        ]

    def close(self) -> None:
        self.registry.close()
        self.database.close()


devices = st.fixed_dictionaries(
    {"device": st.sampled_from("abc")},
    optional={
        "attributes": st.dictionaries(st.sampled_from("xy"), st.integers(0, 3), max_size=2),
        "groups": st.just(["g"]),
    },
)
bodies = st.lists(devices.map(json.dumps) | st.sampled_from(["", "bad"]), max_size=6).map("\n".join)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
async def test_an_import_twice_is_an_import_once(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    offline = Offline(tmp_path_factory.mktemp("offline"))
    first = await offline.take(body.encode())
    await offline.run_until_idle()
    once = offline.state()
    second = await offline.take(body.encode())
    await offline.run_until_idle()
    assert offline.state() == once
    [one, two] = [offline.table.find("acme", row.id) for row in (first, second)]
    assert one is not None
    assert two is not None
    assert (one.lines, one.done, one.failed) == (two.lines, two.done, two.failed)
    offline.close()


async def test_an_import_goes_on_after_a_restart_where_it_was(tmp_path: Path) -> None:
    offline = Offline(tmp_path)
    count = 3 * BATCH
    row = await offline.take(b"\n".join(b'{"device": "d%d"}' % n for n in range(count)))
    with offline.importer._path(row.id).open("rb") as file:
        part = offline.importer._batch(msgspec.structs.replace(row, status=ImportStatus.RUNNING), [], file)
    offline.table.put(part)
    assert (part.done, part.status) == (BATCH, ImportStatus.RUNNING)
    (tmp_path / "imports" / "0123456789abcdef.import").write_text("never became an import")
    offline.close()

    restarted = Offline(tmp_path)
    await restarted.run_until_idle()
    done = restarted.table.find("acme", row.id)
    assert done is not None
    assert (done.status, done.lines, done.done) == (ImportStatus.FINISHED, count, count)
    assert restarted.registry.device_count("acme") == count
    assert list((tmp_path / "imports").iterdir()) == []
    restarted.close()


async def test_an_import_whose_file_is_lost_is_marked_failed(tmp_path: Path) -> None:
    offline = Offline(tmp_path)
    row = await offline.take(b'{"device": "a"}')
    offline.importer._path(row.id).unlink()
    await offline.run_until_idle()
    found = offline.table.find("acme", row.id)
    assert found is not None
    assert (found.status, found.failures[0].reason) == (ImportStatus.FAILED, "its file cannot be read")
    offline.close()


async def test_no_more_imports_wait_than_may_and_old_ones_are_forgotten(tmp_path: Path) -> None:
    offline = Offline(tmp_path)
    for _ in range(4):
        await offline.take(b"")
    with pytest.raises(Refused, match="waiting"):
        await offline.take(b"")
    await offline.run_until_idle()
    last = await offline.take(b"")
    kept = offline.table.page("acme", "", 100)
    assert len(kept) == 2
    assert kept[0].id == last.id
    offline.close()


@pytest.mark.parametrize("line", [b"\xff", b"[" * 2000, b"{}", b"null", b'{"device": 1}', b'"'])
def test_lines_that_make_no_sense_are_refused(line: bytes) -> None:
    with pytest.raises(BadLine):
        parse("ndjson", [], line)
    with pytest.raises(BadLine):
        parse("csv", ["device", "a"], line)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_line_or_are_refused(line: bytes) -> None:
    for form in ("ndjson", "csv"):
        try:
            found = parse(form, ["device"], line)
        except BadLine:
            continue
        assert found.device
    with contextlib.suppress(BadLine):
        assert "device" in columns_of(line)
