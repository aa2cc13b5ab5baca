from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run what drives sockets on both loops: the one of the tests, and the one of the gateway."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
