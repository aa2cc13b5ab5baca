"""The data service over HTTP, in the process of a test, with passports of its own and a sink `local`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from ingest.records import Group
from runtime.logs import make_log
from services import settings
from services.data.app import made
from services.web.passport import PassportVerifier
from tests.support.feeds import write_local
from tests.support.passports import Passports

SCOPES = "telemetry:read privacy:write"
JSON_TYPES = {"application/json", "application/problem+json"}


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Any
    headers: Any

    @property
    def slug(self) -> str:
        return str(self.body["type"]).removeprefix("urn:headworks:problem:")


class Service:
    """One service that runs on `folder`/local.db."""

    def __init__(self, folder: Path, client: TestClient[Any, Any], passports: Passports) -> None:
        self.folder = folder
        self.sink = folder / "local.db"
        self.client = client
        self.passports = passports
        self.draining = asyncio.Event()

    def signed(self, **claims: str) -> dict[str, str]:
        return self.passports.headers("data", **{"tenant": "acme", "scopes": SCOPES, **claims})

    async def ask(
        self, path: str, *, method: str = "GET", accept: str = "", params: Any = None, **claims: str
    ) -> Answer:
        headers = {**self.signed(**claims), **({"Accept": accept} if accept else {})}
        response = await self.client.request(method, path, params=params, headers=headers)
        content = await response.read()
        body = msgspec.json.decode(content) if response.content_type in JSON_TYPES else content
        return Answer(response.status, body, response.headers)

    async def of(self, device: str, path: str = "/telemetry", version: str = "v2", **asked: Any) -> Answer:
        claims = {"device": asked.pop("as_device")} if "as_device" in asked else {}
        return await self.ask(f"/{version}/tenants/acme/devices/{device}{path}", **asked, **claims)

    async def has(self, *groups: Group) -> None:
        """Put groups into the sink, and wait until the service has them."""
        count = await self.taken()
        await asyncio.to_thread(write_local, self.sink, *groups)
        wanted = sum(run.count for group in groups for run in group.runs)
        await self.until(count + wanted)

    async def until(self, count: float) -> None:
        async with asyncio.timeout(20):
            while await self.taken() < count:
                await asyncio.sleep(0.02)

    async def metric(self, name: str) -> float:
        text = await (await self.client.get("/metrics")).text()
        found = [line.split()[1] for line in text.splitlines() if line.startswith(f"headworks_{name} ")]
        return float(found[0])

    async def taken(self) -> float:
        return await self.metric("feed_records_total")

    @contextlib.asynccontextmanager
    async def tail(
        self, tenant: str = "acme", after: str = "", whose: str = ""
    ) -> AsyncIterator[ClientResponse]:
        params = {"tenant": tenant, **({"after": after} if after else {})}
        headers = self.signed(tenant=whose or tenant)
        async with self.client.get("/tail", params=params, headers=headers) as response:
            yield response


async def lines(response: ClientResponse, count: int) -> list[dict[str, Any]]:
    """Return the next `count` lines that are not empty."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            line = await response.content.readline()
            assert line, "the stream has ended"
            if line.strip():
                found.append(msgspec.json.decode(line))
    return found


@contextlib.asynccontextmanager
async def data_service(folder: Path, *overrides: str) -> AsyncIterator[Service]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # once, before anything runs
    passports = Passports(folder / "passport.pub")
    config = folder / "services.toml"
    config.write_text(
        f'[service]\ndata_dir = "{folder}"\n[feed]\nfile = "{folder}/local.db"\npoll_s = 0.2\n'
        "[data]\nretention_days = 3650\n"
    )
    found = settings.load(config, overrides)
    verifier = PassportVerifier(passports.path, audience="data")
    verifier.poll()
    draining = asyncio.Event()
    log = make_log("error", "json")
    async with (
        made(found, verifier, draining, log) as app,
        TestClient(TestServer(app)) as client,
    ):
        service = Service(folder, client, passports)
        service.draining = draining
        try:
            yield service
        finally:
            draining.set()
