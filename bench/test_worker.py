"""The way of a publish through one worker, in-process: what one read costs, without a socket or a disk."""

from __future__ import annotations

from typing import Any

import pytest

from bench import corpus
from bench.rig import Rig
from ingest.spool.group import OpenGroup
from protocols.mqtt.packets import MQTT_3_1_1
from runtime import clock

GROUP_RECORDS = 1000
WINDOWS = pytest.mark.parametrize("window", [1, 64])


@WINDOWS
def test_received(benchmark: Any, rig: Rig, window: int) -> None:
    connection, _ = rig.connect()
    data = corpus.publishes(window, MQTT_3_1_1)
    rig.hold()

    def read_and_answer() -> None:
        connection.received(data)
        rig.answer()

    benchmark(read_and_answer)
    assert not connection.session.inflight


@WINDOWS
def test_publish(benchmark: Any, rig: Rig, window: int) -> None:
    connection, producer = rig.connect()
    publishes = connection.session.feed(corpus.publishes(window, MQTT_3_1_1))
    rig.hold()

    def publish() -> list[int] | None:
        if rig.spool.current.records >= GROUP_RECORDS:
            rig.spool.current = OpenGroup(1)
        outcomes, _ = rig.pipeline.publish(producer, publishes, clock.monotonic_s())
        return outcomes

    assert benchmark(publish) is None
