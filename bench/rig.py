"""One worker in this process, made by its own composition root, whose commits are made by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import uvloop

from bench import corpus
from ingest.authentication import Door, Peer
from ingest.mqtt.connection import MqttConnection
from ingest.node_memory import MemoryLimits, NodeMemory
from ingest.pipeline import Producer
from ingest.settings import Settings, check
from ingest.spool.group import OpenGroup
from ingest.worker import Worker, WorkerContext
from routing.tenancy.identity import Credential
from runtime.logs import make_log
from runtime.settings_file import parse

MEMORY = MemoryLimits(tenants_max=64, devices_max=10_000, sessions_max=1000, idempotency_keys_max=1000)
PLENTY = {"messages_per_s": 1e12, "bytes_per_s": 1e15}
SETTINGS: dict[str, Any] = {
    "listeners": [{"protocol": "http", "bind": "127.0.0.1:0", "tls": "off", "auth": ["topic"]}],
    "sink": {"kind": "null"},
    "limits": {"default": PLENTY | {f"device_{name}": rate for name, rate in PLENTY.items()}},
}
"""Everything is charged and nothing is ever over its limit."""


class NoWire:
    """Takes answers and drops them."""

    def write(self, data: bytes, /) -> None:
        assert data

    def close(self) -> None:
        return

    def abort(self) -> None:
        return

    def pause_reading(self) -> None:
        return

    def has_unread(self) -> bool:
        return False

    def resume_reading(self) -> None:
        return


def memory_of(workers: int, folder: Path) -> NodeMemory:
    return NodeMemory(workers, MEMORY, folder / "node.lock")


def release(memory: NodeMemory) -> None:
    """Give back what a memory holds of the system."""
    os.close(memory._lock_fd)
    for pair in memory.mailboxes:
        for end in pair:
            end.close()


class Rig:
    """A worker on a loop that runs only when a benchmark runs it."""

    def __init__(self, folder: Path) -> None:
        self.loop = uvloop.new_event_loop()
        self.memory = memory_of(1, folder)
        self.worker = self.loop.run_until_complete(self._make(folder))
        self.spool = self.worker._spool
        self.pipeline = self.worker._pipeline

    async def _make(self, folder: Path) -> Worker:
        settings = parse(
            SETTINGS | {"node": {"data_dir": str(folder)}}, Settings, check=check, source="bench", text=""
        )
        return Worker(WorkerContext(0, settings, self.memory, b"", make_log("error", "json")))

    def connect(self) -> tuple[MqttConnection, Producer]:
        """Let an MQTT 3.1.1 client in."""
        hub = self.worker._hub
        door = Door("bench", frozenset({Credential.TOPIC}))
        connection = MqttConnection(hub, NoWire(), door, Peer("peer", None))
        hub.made(connection)
        connection.received(corpus.connect(4))
        assert connection.producer is not None
        return connection, connection.producer

    def hold(self) -> None:
        """Commit nothing by itself from now on."""
        self.spool.scheduled = True

    def answer(self) -> None:
        """Answer everybody in the open group as if it had been committed."""
        opened = self.spool.current
        opened.seal("bench", "boot")
        for waiter, reply in opened.replies.items():
            waiter.durable(reply)
        self.spool.current = OpenGroup(opened.number + 1)

    def close(self) -> None:
        """Drop what is open, and end; for a worker that never ran."""
        self.spool.scheduled = False
        self.spool.current = OpenGroup(self.spool.current.number)
        self.loop.run_until_complete(self.spool.close())
        self.let_go()

    def let_go(self) -> None:
        """Give back what a worker that has ended holds until its process ends."""
        for reader in (self.worker._reader, self.worker._inspector):
            reader.close()
        self.worker._registry.close()
        release(self.memory)
        self.loop.close()
