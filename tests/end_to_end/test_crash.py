"""kill -9 at random moments under load: nothing that was acknowledged is missing, ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import ledger
from tests.support.fault_kinesis import FaultKinesis, Faults
from tests.support.gateway import Gateway, gateway
from tests.support.mqtt_load import ExactlyOncePublisher, Publisher

ROUNDS = 20
WORKERS = 2
"""So that a device whose worker is killed goes on with another, and its order is put to the test."""


async def crash_under_load(
    node: Gateway, seed: int, publishers: Sequence[Publisher], rounds: int = ROUNDS
) -> None:
    """Kill the workers or everything, `rounds` times, while publishers go on."""
    chance = random.Random(seed)
    over = asyncio.Event()
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        for publisher in publishers:
            tasks.create_task(publisher.run(node.mqtt, over))
        for _ in range(rounds):
            await asyncio.sleep(chance.uniform(0.2, 0.7))
            if chance.random() < 0.5:
                await asyncio.to_thread(node.kill_all)
                await asyncio.to_thread(node.start)
            else:
                await asyncio.to_thread(node.kill_worker, chance.randrange(WORKERS))
                await asyncio.to_thread(node.wait_until, lambda: node.get("/readyz")[0] == 200)
        over.set()
    await asyncio.to_thread(node.wait_until, node.delivered)


@pytest.mark.crash
@pytest.mark.timeout(180)
async def test_no_acknowledged_message_is_lost_to_kill_9(tmp_path: Path) -> None:
    publishers = [Publisher(f"device-{number}", 8) for number in range(20)]
    with gateway(tmp_path, workers=WORKERS) as node:
        await crash_under_load(node, 1, publishers)
        acknowledged = set().union(*(publisher.acknowledged for publisher in publishers))
        sent = set().union(*(publisher.sent() for publisher in publishers))
        summary = ledger.check(acknowledged, sent, ledger.arrived_locally(node.data_dir))
        entry = node.status()["ledger"]["acme"]
        assert entry["accepted"] == entry["delivered"], entry
        assert node.stop() == 0
    assert len(acknowledged) > 1000, summary


@pytest.mark.crash
@pytest.mark.timeout(180)
async def test_no_acknowledged_message_is_lost_to_kill_9_with_a_kinesis_that_fails(tmp_path: Path) -> None:
    publishers = [Publisher(f"device-{number}", 8) for number in range(20)]
    faults = Faults(refuse=0.2, fail=0.05, hang_after_write=0.02, hang_s=1.5, reshard_every=60)
    async with FaultKinesis(shards=4, faults=faults, seed=7) as kinesis:
        sink = (
            f'kind = "kinesis"\nstream = "telemetry"\nregion = "eu-central-1"\n'
            f'endpoint = "http://127.0.0.1:{kinesis.port}"\ncall_deadline_s = 1.0'
        )
        with await asyncio.to_thread(start, tmp_path, sink) as node:
            await crash_under_load(node, 2, publishers)
            acknowledged = set().union(*(publisher.acknowledged for publisher in publishers))
            sent = set().union(*(publisher.sent() for publisher in publishers))
            summary = ledger.check(acknowledged, sent, kinesis.arrived())
            assert await asyncio.to_thread(node.stop) == 0
    assert len(acknowledged) > 1000, summary
    assert kinesis.faults_met >= 3, kinesis.counts


@pytest.mark.crash
async def test_a_qos_2_message_arrives_exactly_once_over_kill_9(tmp_path: Path) -> None:
    publishers = [ExactlyOncePublisher(f"device-{number}", 8) for number in range(20)]
    with gateway(tmp_path, workers=WORKERS) as node:
        await crash_under_load(node, 3, publishers, rounds=8)
        sent = set().union(*(publisher.sent() for publisher in publishers))
        arrived = ledger.arrived_locally(node.data_dir)
        ledger.check(sent, sent, arrived)
        assert len(arrived) == len(sent), "some arrived twice"
    assert len(sent) > 500


def start(folder: Path, sink: str) -> Started:
    return Started(folder, sink)


class Started:
    """A gateway whose start does not block the loop that the fault-injecting Kinesis runs on."""

    def __init__(self, folder: Path, sink: str) -> None:
        self._node = Gateway(folder, sink=sink, workers=WORKERS)
        self._node.start()

    def __enter__(self) -> Gateway:
        return self._node

    def __exit__(self, *_: object) -> None:
        if self._node.process is not None and self._node.process.poll() is None:
            self._node.kill_all()
