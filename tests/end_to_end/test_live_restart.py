"""A dashboard misses nothing while the data service is away."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runtime import clock
from tests.support.platform import Running, platform

pytestmark = pytest.mark.end_to_end


def send(running: Running, value: int) -> None:
    issued = running.node.ca.device("demo", "device-1")
    body = json.dumps({"ts": clock.unix_ms(), "metrics": {f"m{value}": value}})
    status, said = running.curl(
        *("--cert", str(issued.certificate), "--key", str(issued.key)),
        *("-H", "Content-Type: application/json", "-d", body),
        f"{running.ingest_url}/v1/telemetry/sensors",
    )
    assert status == 202, said


async def until(socket: aiohttp.ClientWebSocketResponse, name: str, wanted: Any = None) -> Any:
    """Return the next message that has a member, of a value."""
    while True:
        told = await socket.receive_json()
        if name in told and wanted in {None, told[name] if isinstance(told[name], str) else None}:
            return told


async def watched(running: Running, socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.send_json({"subscribe": {"every_ms": 50}})
    await until(socket, "tail", "live")
    await asyncio.to_thread(send, running, 1)
    assert [each["value"] for each in (await until(socket, "values"))["values"]] == [1.0]


def test_what_came_while_the_data_service_was_away_is_shown_afterwards(tmp_path: Path) -> None:
    with platform(tmp_path) as running:
        child = next(each for each in running.platform._children if each.name == "headworks data")
        assert child._process is not None
        command = [sys.executable, "-m", "commands.cli", "service", "data"]
        command += ["--config", str(running.folder / "services.toml")]
        again: list[subprocess.Popen[bytes]] = []

        async def watch() -> None:
            address = f"{running.url.replace('https', 'wss')}/v1/live"
            async with (
                asyncio.timeout(60),
                aiohttp.ClientSession(headers={"X-API-Key": running.key}) as client,
                client.ws_connect(address, ssl=running.tls()) as socket,
            ):
                await watched(running, socket)
                child._process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
                await until(socket, "tail", "lost")
                await asyncio.to_thread(send, running, 2)
                with (running.folder / "data-again.log").open("wb") as log:
                    again.append(subprocess.Popen(command, stdout=log, stderr=log))  # noqa: ASYNC220  # at once
                seen: list[float] = []
                while 2.0 not in seen:
                    seen += [each["value"] for each in (await until(socket, "values"))["values"]]
                assert seen == [2.0]

        try:
            asyncio.run(watch())
        finally:
            for process in again:
                process.terminate()
                assert process.wait(30) == 0
