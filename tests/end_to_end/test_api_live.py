"""`/v1/live` on the data service, both as processes: kill -9 of the service costs time and no value."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from runtime import clock
from tests.support.api_gateway import api_gateway_beside
from tests.support.feeds import group, write_local
from tests.support.gateway import free_port

pytestmark = pytest.mark.end_to_end
ROUTES = """
[authorizers.keys]
kind = "api_key"
[upstreams.gateway]
kind = "internal"
[upstreams.data]
discovery = {{ kind = "static", endpoints = [{{ address = "127.0.0.1:{port}" }}] }}
[[routes]]
name = "live"
method = "GET"
path = "/v1/live"
upstream = "gateway"
authorizers = ["keys"]
scopes = ["live:read"]
"""
SERVICES = """
[service]
data_dir = "{folder}/services"
registry = "{folder}/registry.db"
passport_key = "{folder}/api/passport.pub"
[feed]
file = "{folder}/local.db"
poll_s = 0.2
[data]
bind = "127.0.0.1:{port}"
"""
COUNT = 20


class DataService:
    """The process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "services.toml"
        self.config.write_text(SERVICES.format(folder=folder, port=self.port))
        self._process: subprocess.Popen[bytes] | None = None

    def get(self, path: str) -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer,
        ):
            return str(answer.read().decode())
        return ""

    def has(self, count: int) -> bool:
        """Return whether it has read so many records."""
        return f"headworks_feed_records_total {count}.0" in self.get("/metrics")

    def wait_until(self, done: Callable[[], object]) -> None:
        until = time.monotonic() + 20
        while not done():
            assert time.monotonic() < until, (self.folder / "data.log").read_text()
            time.sleep(0.05)

    def start(self) -> None:
        words = ["service", "data", "--config", str(self.config)]
        with (self.folder / "data.log").open("ab") as log:
            command = [sys.executable, "-m", "commands.cli", *words]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.wait_until(lambda: self.get("/healthz"))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataService]:
    made = DataService(tmp_path)
    yield made
    made.kill()


def put(folder: Path, number: int) -> set[str]:
    """Put a group of readings into the sink; each has a metric of its own, so that none replaces another."""
    now_ms = clock.unix_ms()
    names = {f"m{number}-{position}" for position in range(COUNT)}
    readings = [json.dumps({"ts": now_ms, "metrics": {name: 1}}).encode() for name in sorted(names)]
    write_local(folder / "local.db", group(number, readings, received_at_ms=now_ms))
    return names


async def test_a_dashboard_sees_all_that_came_while_the_data_service_was_dead(
    tmp_path: Path, data: DataService
) -> None:
    put(tmp_path, 1)  # from before anybody listens: not shown
    async with api_gateway_beside(tmp_path, ROUTES.format(port=data.port)) as node:
        await asyncio.to_thread(data.start)
        await asyncio.to_thread(data.wait_until, lambda: data.has(COUNT))
        seen: list[str] = []
        told: list[str] = []

        async def until(names: set[str]) -> None:
            async with asyncio.timeout(30):
                while not names <= set(seen):
                    said = await client.receive_json()
                    seen.extend(value["metric"] for value in said.get("values", []))
                    told.extend([said["tail"]] if "tail" in said else [])

        async with (
            aiohttp.ClientSession(headers={"X-API-Key": node.key("live:read")}) as session,
            session.ws_connect(f"{node.url}/v1/live") as client,
        ):
            await client.send_json({"subscribe": {"every_ms": 50}})
            async with asyncio.timeout(20):
                while "live" not in told:
                    told.append((await client.receive_json())["tail"])
            await until(put(tmp_path, 2))
            await asyncio.to_thread(data.kill)
            missed = put(tmp_path, 3)
            async with asyncio.timeout(10):
                while told[-1] != "lost":
                    told.append((await client.receive_json())["tail"])
            await asyncio.to_thread(data.start)
            await until(missed)
            await until(put(tmp_path, 4))
        assert told[-1] == "live"
        shown = [f"m{number}-{position}" for number in (2, 3, 4) for position in range(COUNT)]
        assert sorted(seen) == sorted(shown), "each once, and nothing from before"
        assert not node.lines("unexpected")
