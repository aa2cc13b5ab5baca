"""What a campaign does to its node at given times: kill it, take its sink away, replace its certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import assert_never

from loadtests.campaign.local_sink import Outage
from loadtests.campaign.settings import local_db
from loadtests.node import Node
from loadtests.plan import ON_THE_FLEET, Event, Plan


class Happenings:
    """The events of a plan that happen to `node`, one after the other; `say` hears of each."""

    def __init__(self, plan: Plan, node: Node, say: Callable[[str], None]) -> None:
        self._events = sorted(
            (event for event in plan.events if event.what not in ON_THE_FLEET), key=lambda event: event.at_s
        )
        self._node = node
        self._say = say
        self.node_was_killed = False
        self.spooled: int | None = None
        """How many messages waited at the end of an outage of the sink."""

    async def run(self, began_s: float) -> None:
        """Let them all happen; `began_s` is when the load began, by the loop's clock."""
        loop = asyncio.get_running_loop()
        for event in self._events:
            await asyncio.sleep(max(0.0, began_s + event.at_s - loop.time()))
            self._say(f"after {loop.time() - began_s:.1f} s: {event.what.replace('_', ' ')}")
            await self._happen(event)

    async def _happen(self, event: Event) -> None:
        node = self._node
        match event.what:
            case "sink_outage":
                await self._outage(event.for_s)
            case "kill_worker":
                await node.kill_worker(event.worker)
            case "kill_node":
                self.node_was_killed = True
                await node.kill_all()
                await asyncio.sleep(event.for_s)
                await node.start()
            case "reload_certificates":
                await node.command("pki", "server", "localhost", "127.0.0.1", "--dir", str(node.pki))
            case "drop" | "out_of_reach":
                raise AssertionError("it happens to the fleet")
            case _:
                assert_never(event.what)

    async def _outage(self, for_s: float) -> None:
        with Outage(local_db(self._node)):
            await asyncio.sleep(for_s)
            status = await self._node.status()
            self.spooled = status.booked("spooled") if status is not None else 0
