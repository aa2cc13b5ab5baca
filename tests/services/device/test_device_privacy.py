"""Data subjects: everything about a device comes out, and after an erasure nothing of its name is left."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest.delivery import local
from services.device.privacy import Piece, TelemetryError, as_lines, as_object
from tests.support.device_service import Service, device_service, signing_request

NAME = "pump-of-mrs-smith"


def telemetry(path: Path, devices: list[str]) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(local.SCHEMA)
    rows = [
        (f"{device}-{number}", "acme", device, "s", number, "n", '{"ts":1,"metrics":{"v":1}}')
        for device in devices
        for number in range(700)
    ]
    connection.executemany(local.INSERT, rows)
    connection.commit()
    connection.close()


async def live(service: Service) -> None:
    """Give a device something of everything."""
    await service.of_acme("POST", "/groups", {"group": "roof"})
    new = {"device": NAME, "attributes": {"owner": "mrs smith"}, "groups": ["roof"]}
    await service.of_acme("POST", "/devices", new)
    await service.of_acme("POST", f"/devices/{NAME}/certificates", {"csr": signing_request()})
    await service.of_acme("PATCH", f"/devices/{NAME}/shadow/desired", {"warm": True})
    await service.of_acme("PATCH", f"/devices/{NAME}/shadow/reported", {"room": "bedroom"}, device=NAME)
    await service.of_acme("POST", "/keys", {"name": NAME, "kind": "device"})


async def test_an_export_has_everything_about_a_device_and_nothing_of_another(tmp_path: Path) -> None:
    telemetry(tmp_path / "telemetry.db", [NAME, "other"])
    setting = f'device.telemetry="{tmp_path / "telemetry.db"}"'
    async with device_service(tmp_path / "node", setting) as service:
        await live(service)
        await service.of_acme("POST", "/devices", {"device": "other"})
        answer = await service.of_acme("GET", f"/devices/{NAME}/export")
        found = answer.body
        assert found["complete"] is True
        assert found["device"][0]["attributes"] == {"owner": "mrs smith"}
        assert found["device"][0]["groups"] == ["roof"]
        assert found["shadow"][0]["delta"] == {"warm": True}
        assert [certificate["status"] for certificate in found["certificates"]] == ["active"]
        assert [key["name"] for key in found["keys"]] == [NAME]
        assert "hash" not in found["keys"][0]
        assert {entry["device"] for entry in found["audit"]} == {NAME}
        assert len(found["telemetry"]) == 700
        lines = await service.of_acme(
            "GET", f"/devices/{NAME}/export", headers={"Accept": "application/x-ndjson"}
        )
        decoded = [msgspec.json.decode(line) for line in lines.body.splitlines()]
        assert decoded[-1] == {"kind": "complete", "value": True}
        assert sum(line["kind"] == "telemetry" for line in decoded) == 700
        assert (await service.of_acme("GET", "/devices/nobody/export")).status == 404


async def test_an_export_that_breaks_off_says_so() -> None:
    async def pieces() -> AsyncIterator[Piece]:
        yield "device", b"{}"
        yield "telemetry", b"1"
        raise TelemetryError("gone")

    found: Any = msgspec.json.decode(b"".join([part async for part in as_object(pieces())]))
    assert found == {"device": [{}], "telemetry": [1], "complete": False}
    lines = b"".join([part async for part in as_lines(pieces())]).splitlines()
    assert msgspec.json.decode(lines[-1]) == {"kind": "complete", "value": False}


async def test_telemetry_that_cannot_be_read_makes_an_export_incomplete(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node", f'device.telemetry="{tmp_path / "none.db"}"') as service:
        await live(service)
        answer = await service.of_acme("GET", f"/devices/{NAME}/export")
        assert answer.body["complete"] is False


async def test_nothing_of_a_device_is_left_after_it_is_erased(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node") as service:
        await live(service)
        body = b'{"device": "%s"}\n{"device": "%s", "x": 1}' % (NAME.encode(), NAME.encode())
        await service.of_acme("POST", "/imports", data=body, headers={"Content-Type": "application/x-ndjson"})
        answer = await service.of_acme("POST", f"/devices/{NAME}/erase")
        assert answer.status == 200
        assert (answer.body["certificates_revoked"], answer.body["keys_revoked"]) == (1, 1)
        assert len(service.ca.revoked()) == 1
        assert (await service.of_acme("GET", f"/devices/{NAME}")).status == 404
        assert (await service.of_acme("POST", f"/devices/{NAME}/erase")).status == 404
        assert (await service.of_acme("GET", f"/audit?device={NAME}")).body["items"] == []
        entries = (await service.of_acme("GET", "/audit")).body["items"]
        pseudonym = answer.body["pseudonym"]
        assert any(entry["subject"] == pseudonym for entry in entries), "the log keeps what was done"
        assert not any(NAME in msgspec.json.encode(entry).decode() for entry in entries)

        claim = (await service.of_acme("POST", "/claims", {"uses_max": 2})).body["token"]
        asked = {"csr": signing_request(), "device": NAME, "token": claim}
        refused = await service.call("POST", "/v1/provision", asked)
        assert (refused.status, refused.slug) == (403, "erased")
    for path in (tmp_path / "node").glob("device.db*"):
        assert NAME.encode() not in path.read_bytes(), path
        assert b"bedroom" not in path.read_bytes(), path
    async with device_service(tmp_path / "node") as service:
        assert (await service.of_acme("POST", "/devices", {"device": NAME})).status == 201
        assert (await service.of_acme("GET", f"/audit?device={NAME}")).body["items"][0]["number"] > 1


@pytest.mark.parametrize("path", [f"/devices/{NAME}/export", f"/devices/{NAME}/erase"])
async def test_export_and_erasure_need_a_scope_of_their_own(service: Service, path: str) -> None:
    method = "GET" if path.endswith("export") else "POST"
    answer = await service.of_acme(method, path, scopes="devices:read devices:write")
    assert answer.slug == "missing-scope"
