"""One POST of one measurement over loopback, from the request to its 202, client and server on one loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import corpus
from bench.rig import Rig
from ingest.records import Encoding


class NoDisk:
    """Stands for the queue of the spool's writer: every commit has ended by the next turn of the loop."""

    def __init__(self, rig: Rig) -> None:
        self._writer = rig.spool._jobs
        self._loop = rig.loop
        self._ended = rig.spool._ended

    def put(self, job: Any) -> None:
        if job is None:
            self._writer.put(None)
        else:
            self._loop.call_soon(self._ended, job, None, 0.0)


async def start(rig: Rig) -> asyncio.Task[int]:
    """Run the worker until it listens."""
    running = rig.loop.create_task(rig.worker.run())
    while not rig.worker._doors._acceptors:
        assert not running.done()
        await asyncio.sleep(0)
    return running


@pytest.fixture
def serving(disk: Path) -> Iterator[Rig]:
    rig = Rig(disk)
    running = rig.loop.run_until_complete(start(rig))
    yield rig
    rig.worker._drained.set()
    rig.loop.run_until_complete(running)
    rig.let_go()


@pytest.mark.parametrize("durable", [False, True], ids=["without a disk", "with its fsync"])
def test_request(benchmark: Any, serving: Rig, *, durable: bool) -> None:
    if not durable:
        serving.spool._jobs = NoDisk(serving)  # type: ignore[assignment]
    [payload] = corpus.payloads(1, Encoding.JSON)
    path = f"/v1/tenants/{corpus.TENANT}/devices/{corpus.device(0)}/telemetry/{corpus.STREAM}"
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(payload)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + payload
    loop = serving.loop
    with socket.create_connection(serving.worker._doors._acceptors[0]._sock.getsockname()) as client:
        client.setblocking(False)

        async def exchange() -> bytes:
            await loop.sock_sendall(client, request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += await loop.sock_recv(client, 65_536)
            return answer

        answer = benchmark(lambda: loop.run_until_complete(exchange()))
    assert answer.startswith(b"HTTP/1.1 202 ")
