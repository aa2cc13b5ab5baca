"""The connection of a node to Valkey, by which nodes share limits; and how many nodes there are.

- Each call has a deadline. The first that fails takes the link down; from then on nobody waits for it, until
  the heartbeat of `run`, every `HEARTBEAT_S`, is answered again.
- A node that was not heard of for `NODE_GONE_S` is not counted. While the link is down, the last count stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import valkey.asyncio
from valkey.backoff import NoBackoff
from valkey.exceptions import ValkeyError
from valkey.retry import Retry

Script = Callable[[list[str], Sequence[str | float]], Awaitable[Any]]
HEARTBEAT_S: Final = 1.0
NODE_GONE_S: Final = 10.0
NODES: Final = "headworks:nodes"
HEARTBEAT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1])
local is_new = redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
return {is_new, redis.call('ZCARD', KEYS[1])}
"""


class ValkeyLink:
    """One link for all limits of a node, whose name is `node`, unique and the same after a restart.

    `changed` hears None when the link is up, and what is wrong when it goes down. Until the first answer,
    `nodes_expected` nodes are taken to share each limit.
    """

    def __init__(
        self,
        url: str,
        *,
        node: str,
        deadline_s: float,
        nodes_expected: int,
        changed: Callable[[str | None], None],
    ) -> None:
        self.node = node
        self.nodes = max(1, nodes_expected)
        self.is_up = True
        self.forgotten = asyncio.Event()
        """Set when the server does not know this node, which it may have done before."""
        self.failures = 0
        self._deadline_s = deadline_s
        self._changed = changed
        self._client = valkey.asyncio.Valkey.from_url(
            url,
            socket_timeout=deadline_s,
            socket_connect_timeout=deadline_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=64,
        )
        self._heartbeat = self.script(HEARTBEAT)

    def script(self, text: str) -> Script:
        """Return a call of a script, which is loaded into the server when it does not have it."""
        script = self._client.register_script(text)

        async def call(keys: list[str], arguments: Sequence[str | float]) -> Any:
            return await script(keys=keys, args=list(arguments))

        return call

    async def call(self, script: Script, keys: list[str], arguments: Sequence[str | float]) -> Any | None:
        """Return what a script answers, or None when the link is down or goes down with this."""
        if not self.is_up:
            return None
        return await self._call(script, keys, arguments)

    async def run(self) -> None:
        """Be counted among the nodes, and find out when the server is back, until cancelled."""
        try:
            while True:
                answer = await self._call(self._heartbeat, [NODES], [self.node, NODE_GONE_S])
                if answer is not None:
                    self.nodes = max(1, int(answer[1]))
                    if answer[0]:
                        self.forgotten.set()
                    if not self.is_up:
                        self.is_up = True
                        self._changed(None)
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(self, script: Script, keys: list[str], arguments: Sequence[str | float]) -> Any | None:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await script(keys, arguments)
        except (ValkeyError, OSError, TimeoutError) as error:
            self.failures += 1
            if self.is_up:
                self.is_up = False
                self._changed(type(error).__name__)  # its text may repeat the URL, which may hold a password
            return None
