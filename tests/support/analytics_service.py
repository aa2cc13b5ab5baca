"""An analytics service over the file of the sink `local`, for tests of what it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from ingest.records import Group
from runtime.logs import make_log
from services import settings
from services.analytics.app import made
from services.web.passport import PassportVerifier
from tests.support.device_service import Answer
from tests.support.feeds import group, write_local
from tests.support.passports import Passports

SCOPES = "analytics:read privacy:write"


class AnalyticsClient:
    """One service that runs; `send` puts telemetry into the stream that it consumes."""

    def __init__(self, folder: Path, client: TestClient[Any, Any], passports: Passports) -> None:
        self._folder = folder
        self.client = client
        self._passports = passports
        self._groups = 0

    def send(
        self,
        *readings: dict[str, Any],
        tenant: str = "acme",
        device: str = "pump-1",
        stream: str = "main",
        received_at_ms: int,
    ) -> Group:
        """Write readings to the stream, as one group of a gateway."""
        self._groups += 1
        sent = group(
            self._groups,
            [json.dumps(reading).encode() for reading in readings],
            tenant=tenant,
            device=device,
            stream=stream,
            received_at_ms=received_at_ms,
        )
        write_local(self._folder / "local.db", sent)
        return sent

    async def get(self, path: str, *, method: str = "GET", **claims: Any) -> Answer:
        """Return the answer to what a caller of acme asks, below its tenant."""
        signed = self._passports.headers("analytics", **{"tenant": "acme", "scopes": SCOPES, **claims})
        url = path if path.startswith("/") else f"/v1/tenants/acme/{path}"
        response = await self.client.request(method, url, headers=signed)
        content = await response.read()
        is_json = response.content_type in {"application/json", "application/problem+json"}
        return Answer(response.status, json.loads(content) if is_json else content.decode(), response.headers)

    async def until(self, path: str, holds: Callable[[Any], bool], *, deadline_s: float = 20.0) -> Any:
        """Return the body of an answer when something holds of it."""
        async with asyncio.timeout(deadline_s):
            while True:
                answer = await self.get(path)
                if answer.status == 200 and holds(answer.body):
                    return answer.body
                assert answer.status in {200, 404}, answer.body
                await asyncio.sleep(0.02)

    async def metric(self, name: str) -> float:
        """Return a number that /metrics shows."""
        lines = (await self.get("/metrics")).body.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    async def until_metric(self, name: str, value: float, *, deadline_s: float = 20.0) -> None:
        """Wait until /metrics shows a number."""
        async with asyncio.timeout(deadline_s):
            while await self.metric(name) < value:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def analytics_service(folder: Path, *overrides: str) -> AsyncIterator[AnalyticsClient]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # once, before anything runs
    passports = Passports(folder / "passport.pub")
    config = folder / "services.toml"
    config.write_text(f'[service]\ndata_dir = "{folder}"\n[feed]\nfile = "{folder}/local.db"\npoll_s = 0.2\n')
    found = settings.load(config, overrides)
    verifier = PassportVerifier(passports.path, audience="analytics")
    verifier.poll()
    async with (
        made(found, verifier, asyncio.Event(), make_log("error", "json")) as app,
        TestClient(TestServer(app)) as client,
    ):
        yield AnalyticsClient(folder, client, passports)
