"""Reading publishes and writing their answers: what the protocol itself costs one read."""

from __future__ import annotations

from typing import Any

import pytest

from bench import corpus
from protocols.mqtt.limits import SessionLimits
from protocols.mqtt.packets import MQTT_3_1_1, MQTT_5
from protocols.mqtt.reason import ReasonCode
from protocols.mqtt.session import ServerSession
from protocols.mqtt.wire import Property

LIMITS = SessionLimits(
    packet_bytes_max=1 << 20,
    connect_bytes_max=65_536,
    receive_maximum=1 << 60,  # nothing is ever answered here
    topic_alias_maximum=32,
    topic_levels_max=20,
    topic_bytes_max=512,
    client_id_bytes_max=256,
    user_properties_max=32,
    keep_alive_s_max=3600,
    session_expiry_s_max=86_400,
)
ALIAS = bytes((Property.TOPIC_ALIAS, 0, 1))
VERSIONS = pytest.mark.parametrize("version", [MQTT_3_1_1, MQTT_5], ids=["3.1.1", "5"])
PACKETS = pytest.mark.parametrize("packets", [1, 64])


def opened(version: int) -> ServerSession:
    session = ServerSession(LIMITS)
    session.feed(corpus.connect(version))
    session.accept(session_present=False)
    return session


@VERSIONS
@PACKETS
def test_feed(benchmark: Any, version: int, packets: int) -> None:
    publishes = benchmark(opened(version).feed, corpus.publishes(packets, version))
    assert len(publishes) == packets


@pytest.mark.parametrize(
    ("qos", "properties"), [(0, b""), (1, ALIAS)], ids=["QoS 0", "QoS 1 with a topic alias"]
)
@PACKETS
def test_feed_leaves_its_loop(benchmark: Any, qos: int, properties: bytes, packets: int) -> None:
    data = corpus.publishes(packets, MQTT_5, qos=qos, properties=properties)
    publishes = benchmark(opened(MQTT_5).feed, data)
    assert len(publishes) == packets


def test_feed_half_a_packet_and_then_the_rest(benchmark: Any) -> None:
    session = opened(MQTT_3_1_1)
    data = corpus.publishes(1, MQTT_3_1_1)

    def read_twice() -> int:
        return len(session.feed(data[:60])) + len(session.feed(data[60:]))

    assert benchmark(read_twice) == 1


@PACKETS
def test_acknowledge(benchmark: Any, packets: int) -> None:
    session = opened(MQTT_3_1_1)
    publishes = session.feed(corpus.publishes(packets, MQTT_3_1_1))
    assert len(benchmark(session.acknowledge, publishes, None)) == 4 * packets


@PACKETS
def test_acknowledge_with_reasons(benchmark: Any, packets: int) -> None:
    session = opened(MQTT_5)
    publishes = session.feed(corpus.publishes(packets, MQTT_5))
    reasons = [int(ReasonCode.QUOTA_EXCEEDED)] * packets
    assert len(benchmark(session.acknowledge, publishes, reasons)) == 5 * packets
