"""Who asks an Envoy as an application would, and the mesh in which it does."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.support import mesh_documents as of

ONCE: dict[str, Any] = {"retryPolicy": {"maxRetries": 0, "perRetryTimeout": {"unit": "s", "value": 10}}}


class Client:
    """Asks a proxy, as an application would."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def ask(
        self,
        path: str = "/",
        host: str = "cart.local",
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        sent = {"Host": host, **(headers or {})}
        async with self._session.request(
            method, self._base + path, headers=sent, allow_redirects=False
        ) as answer:
            return answer.status, await answer.text()

    async def many(
        self, count: int, at_once: int = 32, path: str = "/"
    ) -> collections.Counter[tuple[int, str]]:
        """Ask `count` times, and count statuses with the first word of the answer."""
        seen: collections.Counter[tuple[int, str]] = collections.Counter()
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                status, text = await self.ask(path)
                seen[status, text.split(" ", 1)[0] if status == 200 else ""] += 1

        await asyncio.gather(*[some() for _ in range(at_once)])
        return seen


class Load:
    """Requests without an end; each answer is counted."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.seen: collections.Counter[tuple[int, str]] = collections.Counter()
        self.last = ""

    async def run(self) -> None:
        while True:
            status, text = await self._client.ask()
            self.last = text.split(" ", 1)[0]
            self.seen[status, self.last if status == 200 else text] += 1

    async def until(self, name: str) -> None:
        async with asyncio.timeout(30):
            while self.last != name:
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        wanted = self.seen.total() + count
        async with asyncio.timeout(30):
            while self.seen.total() < wanted:
                await asyncio.sleep(0.01)

    def failed(self) -> dict[tuple[int, str], int]:
        return {key: count for key, count in self.seen.items() if key[0] != 200}


@contextlib.asynccontextmanager
async def loaded(asking: Any, base: str) -> AsyncIterator[Load]:
    load = Load(Client(asking, base))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(load.run()) for _ in range(4)]
        yield load
        for each in running:
            each.cancel()


def session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def cart(ports: dict[str, int], *routes: of.Document, **listener: Any) -> list[of.Document]:
    """Return a mesh in which `front` calls `cart.local`, whose routes lead to the nodes in `ports`."""
    return [
        of.mesh(),
        of.node("front", 8080, backends=("cart.local",)),
        of.service("cart.local", router="cart"),
        of.router("cart"),
        *[of.node(name, port, **listener) for name, port in ports.items()],
        *routes,
    ]
