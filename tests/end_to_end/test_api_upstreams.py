"""One of three upstreams is killed or hangs under load, and returns; a ledger has what became of each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.api_gateway import ApiGateway, api_gateway
from tests.support.echo_server import EchoServer, echo_servers
from tests.support.gateway import free_port

pytestmark = pytest.mark.end_to_end
ROUTES = """
[upstreams.echo]
discovery = {{ kind = "static", endpoints = [{endpoints}] }}
balancing = "{balancing}"
health = {{ interval_s = 0.2, timeout_s = 0.5 }}
ejection = {{ base_s = 1.0 }}
[[routes]]
name = "get"
method = "GET"
path = "/v1/{{rest...}}"
upstream = "echo"
public = true
retries = {{ try_timeout_s = 1.0 }}
[[routes]]
name = "post"
method = "POST"
path = "/v1/{{rest...}}"
upstream = "echo"
public = true
"""
CONNECTIONS = 96
"""So many that more requests are under way at one server than its breaker would bear of failures in a row."""
PATIENCE_S = 20.0


class Load:
    """Callers that ask again and again, each on a connection of its own."""

    def __init__(self, node: ApiGateway, method: str = "GET", *, keyed: bool = False) -> None:
        self._node = node
        self._method = method
        self._keyed = keyed
        self._numbers = itertools.count()
        self._ended = False
        self.sent: set[str] = set()
        self.answers: dict[str, tuple[int, str]] = {}
        self.by_server: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        session = aiohttp.ClientSession(self._node.url, connector=connector)
        async with session, asyncio.TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(self._call(session))
            try:
                yield self
            finally:
                self._ended = True

    async def _call(self, session: aiohttp.ClientSession) -> None:
        while not self._ended:
            entry = f"r{next(self._numbers)}"
            self.sent.add(entry)
            headers = {"X-Ledger": entry, **({"Idempotency-Key": entry} if self._keyed else {})}
            async with session.request(self._method, "/v1/slow/0.2", headers=headers) as response:
                body = await response.json()
                server = str(body.get("server", "")) if response.status == 200 else str(body)
            assert entry not in self.answers
            self.answers[entry] = (response.status, server)
            self.by_server[server] += 1

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                await asyncio.sleep(0.02)

    async def more(self, count: int, server: str = "") -> None:
        """Wait until there are `count` more answers, of one server if it is named."""
        wanted = self._answered(server) + count
        await self.until(lambda: self._answered(server) >= wanted)

    def _answered(self, server: str) -> int:
        return self.by_server[server] if server else len(self.answers)


def check(load: Load, servers: list[EchoServer], node: ApiGateway, *, lost_at: str) -> None:
    """Compare what was sent, what was answered, and what each server has in its ledger."""
    assert load.sent == set(load.answers), "sent = answered"
    failed = {entry: answer for entry, answer in load.answers.items() if answer[0] != 200}
    assert not failed
    came = Counter(entry for server in servers for entry in server.entries())
    assert set(came) <= load.sent, "nothing is made up"
    assert load.sent == set(came)
    for server in servers:
        answered = {entry for entry, (_, name) in load.answers.items() if name == server.name}
        assert answered <= set(server.entries()), "who answered was asked"
        twice = set(server.entries()) - answered
        assert server.name == lost_at or not twice, "only what was under way at the lost one is asked again"
    again = sum(came.values()) - len(came)
    assert again <= 2 * CONNECTIONS
    assert node.metric("headworks_upstream_retries_refused_total") == 0


@pytest.fixture(params=["least_request", "weighted_round_robin"])
def three(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ApiGateway, list[EchoServer]]]:
    with echo_servers(tmp_path, *(free_port() for _ in range(3))) as servers:
        endpoints = ", ".join(f'{{ address = "{server.address}" }}' for server in servers)
        routes = ROUTES.format(endpoints=endpoints, balancing=request.param)
        with api_gateway(tmp_path, routes, extra="[log]\naccess = false") as node:
            yield node, servers


def health(node: ApiGateway, server: EchoServer) -> tuple[bool, float]:
    for endpoint in node.status()["upstreams"]["echo"]["endpoints"]:
        if endpoint["address"] == server.address:
            return endpoint["healthy"], endpoint["ejected_s"]
    raise AssertionError(server.address)


async def test_killing_one_of_three_fails_no_idempotent_request_and_it_returns(
    three: tuple[ApiGateway, list[EchoServer]],
) -> None:
    node, servers = three
    killed = servers[1]
    async with Load(node).running() as load:
        await load.more(3 * CONNECTIONS)
        assert {"a", "b", "c"} <= set(load.by_server)
        await asyncio.to_thread(killed.kill)
        await load.more(5 * CONNECTIONS)
        assert not (await asyncio.to_thread(health, node, killed))[0]
        before = load.by_server["b"]
        await load.more(CONNECTIONS)
        assert load.by_server["b"] == before, "nobody asks it any more"
        await asyncio.to_thread(killed.start)
        await load.more(CONNECTIONS, "b")
    assert set(load.by_server) == {"a", "b", "c"}
    check(load, servers, node, lost_at="b")


async def test_one_of_three_that_hangs_costs_time_and_no_request(
    three: tuple[ApiGateway, list[EchoServer]],
) -> None:
    node, servers = three
    hung = servers[2]
    async with Load(node).running() as load:
        await load.more(3 * CONNECTIONS)
        hung.freeze()
        try:
            await load.more(5 * CONNECTIONS)
            assert not (await asyncio.to_thread(health, node, hung))[0]
        finally:
            hung.thaw()
        await load.more(CONNECTIONS, "c")
    check(load, servers, node, lost_at="c")


@pytest.mark.parametrize("three", ["least_request"], indirect=True)
async def test_what_is_not_idempotent_is_done_once_or_fails_where_it_was_under_way(
    three: tuple[ApiGateway, list[EchoServer]],
) -> None:
    node, servers = three
    async with Load(node, "POST").running() as load:
        await load.more(3 * CONNECTIONS)
        await asyncio.to_thread(servers[1].kill)
        await load.more(5 * CONNECTIONS)
    assert load.sent == set(load.answers), "sent = answered"
    statuses = Counter(status for status, _ in load.answers.values())
    assert set(statuses) <= {200, 502}
    assert statuses[502] <= CONNECTIONS // 2, "what was under way at the one, a third as a rule"
    came = Counter(entry for server in servers for entry in server.entries())
    assert set(came.values()) == {1}, "nothing is done twice"
    assert {entry for entry, (status, _) in load.answers.items() if status == 200} <= set(came)


@pytest.mark.parametrize("three", ["least_request"], indirect=True)
async def test_a_post_with_an_idempotency_key_is_asked_again(
    three: tuple[ApiGateway, list[EchoServer]],
) -> None:
    node, servers = three
    async with Load(node, "POST", keyed=True).running() as load:
        await load.more(2 * CONNECTIONS)
        await asyncio.to_thread(servers[1].kill)
        await load.more(4 * CONNECTIONS)
    check(load, servers, node, lost_at="b")
