"""Every packet a client can send: answered, taken, or refused by name."""

from __future__ import annotations

import pytest

from protocols.mqtt.session import Publish, ServerSession
from tests.support.mqtt_packets import LIMITS, connect, packet, publish, subscribe


def opened(version: int = 4, **options: object) -> ServerSession:
    session = ServerSession(LIMITS)
    session.feed(connect(version=version, **options))  # type: ignore[arg-type]
    assert session.connect is not None, session.failure
    session.accept(session_present=False)
    return session


def failure_of(version: int, data: bytes) -> int | None:
    session = opened(version)
    session.feed(data)
    return None if session.failure is None else session.failure.reason


MALFORMED_CONNECTS = {
    "wrong flags of the packet": (b"\x11" + connect()[1:], 0x81),
    "reserved connect flag": (connect(flags=0x03), 0x81),
    "will QoS 3": (connect(flags=0x1E), 0x81),
    "will retain without a will": (connect(flags=0x22), 0x81),
    "will QoS without a will": (connect(flags=0x0A), 0x81),
    "password without user name in 3.1.1": (connect(flags=0x42, rest=b"\x00\x01x"), 0x81),
    "unknown protocol name": (connect(name=b"MQIsdp"), 0x84),
    "unknown version": (connect(version=6), 0x84),
    "bytes after the last field": (connect(rest=b"x"), 0x81),
    "client id too long": (connect(client="c" * 33), 0x85),
    "kept session without client id": (connect(flags=0, client=""), 0x85),
    "client id with a NUL": (connect(client="a\0b"), 0x81),
    "will announced but absent": (connect(flags=0x06), 0x81),
    "user name announced but absent": (connect(flags=0x82), 0x81),
    "receive maximum 0": (connect(version=5, properties=b"\x21\x00\x00"), 0x82),
    "maximum packet size 0": (connect(version=5, properties=b"\x27\x00\x00\x00\x00"), 0x82),
    "a property twice": (connect(version=5, properties=b"\x21\x00\x05\x21\x00\x05"), 0x82),
    "a property of another packet": (connect(version=5, properties=b"\x23\x00\x05"), 0x81),
    "an unknown property": (connect(version=5, properties=b"\x7f\x00"), 0x81),
    "a boolean of 2": (connect(version=5, properties=b"\x17\x02"), 0x82),
    "extended authentication": (connect(version=5, properties=b"\x15\x00\x01x"), 0x8C),
    "authentication data alone": (connect(version=5, properties=b"\x16\x00\x01x"), 0x82),
    "too many user properties": (connect(version=5, properties=b"\x26\x00\x01a\x00\x01b" * 3), 0x97),
    "properties that end early": (connect(version=5, properties=b"\x21\x00"), 0x81),
    "will topic with a wildcard": (connect(flags=0x06, rest=b"\x00\x01#\x00\x01x"), 0x90),
    "length of five bytes": (b"\x10\xff\xff\xff\xff\x01", 0x81),
    "length longer than it must be": (b"\x10\x80\x00", 0x81),
    "larger than allowed": (b"\x10" + b"\xff\x7f" + bytes(100), 0x95),
    "a publish first": (publish(), 0x82),
    "a will that is retained": (
        connect(version=5, flags=0x26, rest=b"\x00" + b"\x00\x01t\x00\x01x"),
        0x9A,
    ),
    "a maximum packet size that fits no CONNACK": (
        connect(version=5, properties=b"\x27\x00\x00\x00\x7f"),
        0x95,
    ),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED_CONNECTS.values(), ids=MALFORMED_CONNECTS)
def test_a_wrong_connect_is_refused_by_name(data: bytes, reason: int) -> None:
    session = ServerSession(LIMITS)
    assert session.feed(data) == []
    assert session.connect is None
    assert session.failure is not None
    assert session.failure.reason == reason
    assert session.failure.text
    session.refuse(reason, session.failure.text)


@pytest.mark.parametrize(("reason", "code"), [(0x84, 1), (0x85, 2), (0x88, 3), (0x86, 4), (0x87, 5)])
def test_a_refusal_of_3_1_1_has_its_return_code(reason: int, code: int) -> None:
    session = ServerSession(LIMITS)
    session.feed(connect())
    assert session.refuse(reason) == bytes((0x20, 2, 0, code))


def test_a_refusal_that_3_1_1_has_no_word_for_is_a_plain_close() -> None:
    session = ServerSession(LIMITS)
    session.feed(connect())
    assert session.refuse(0x81) == b""


MALFORMED = {
    "QoS 3": (publish(flags=0x04), 0x81),
    "DUP with QoS 0": (publish(qos=0, flags=0x08), 0x81),
    "packet id 0": (publish(packet_id=0), 0x82),
    "an empty topic": (publish(topic=b"", payload=b"\x00"), 0x90),
    "a wildcard in the topic": (publish(topic=b"a/+", payload=b"\x00"), 0x90),
    "a topic that is not UTF-8": (publish(topic=b"\xff"), 0x81),
    "a surrogate in the topic": (publish(topic=b"\xed\xa0\x80"), 0x81),
    "a NUL in the topic": (publish(topic=b"a\0b"), 0x81),
    "a topic that is too long": (publish(topic=b"a" * 65, payload=b"\x00"), 0x90),
    "a topic that is too deep": (publish(topic=b"a/" * 8 + b"a", payload=b"\x00"), 0x90),
    "a topic that ends after the packet": (packet(0x32, b"\x00\x09abc"), 0x81),
    "no room for the packet id": (packet(0x32, b"\x00\x01a\x00"), 0x81),
    "larger than allowed": (b"\x30\xff\xff\x7f", 0x95),
    "length of five bytes": (b"\x30\xff\xff\xff\xff\x01", 0x81),
    "a second CONNECT": (connect(), 0x82),
    "CONNACK": (b"\x20\x02\x00\x00", 0x81),
    "PUBACK": (b"\x40\x02\x00\x01", 0x82),
    "PUBREC": (b"\x50\x02\x00\x01", 0x82),
    "PUBCOMP": (b"\x70\x02\x00\x01", 0x82),
    "PUBREL with wrong flags": (b"\x60\x02\x00\x01", 0x81),
    "PUBREL of id 0": (b"\x62\x02\x00\x00", 0x82),
    "SUBACK": (b"\x90\x03\x00\x01\x00", 0x81),
    "PINGREQ with a body": (b"\xc0\x01x", 0x81),
    "PINGREQ with flags": (b"\xc1\x00", 0x81),
    "PINGRESP": (b"\xd0\x00", 0x81),
    "DISCONNECT with flags": (b"\xe1\x00", 0x81),
    "packet type 0": (b"\x00\x00", 0x81),
    "SUBSCRIBE with wrong flags": (subscribe(version=4, flags=0), 0x81),
    "UNSUBSCRIBE with wrong flags": (packet(0xA0, b"\x00\x01\x00\x01a"), 0x81),
}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("data", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_wrong_packet_is_refused_by_name(version: int, data: bytes, reason: int) -> None:
    assert failure_of(version, data) == reason


MALFORMED_5 = {
    "retained": (publish(flags=0x01, properties=b""), 0x9A),
    "alias 0": (publish(properties=b"\x23\x00\x00"), 0x94),
    "alias beyond the maximum": (publish(properties=b"\x23\x00\x05"), 0x94),
    "an alias that is not known": (publish(topic=b"", properties=b"\x23\x00\x01"), 0x82),
    "a subscription identifier": (publish(properties=b"\x0b\x01"), 0x81),
    "a property twice": (publish(properties=b"\x01\x01\x01\x01"), 0x82),
    "a response topic with a wildcard": (publish(properties=b"\x08\x00\x01#"), 0x90),
    "properties that end after the packet": (packet(0x32, b"\x00\x01a\x00\x01\x09"), 0x81),
    "AUTH": (b"\xf0\x00", 0x82),
    "SUBSCRIBE without a filter": (subscribe(version=5, filters=b""), 0x82),
    "SUBSCRIBE with wrong options": (subscribe(version=5, filters=b"\x00\x01a\xc0"), 0x81),
    "a filter with # before its end": (subscribe(version=5, filters=b"\x00\x03#/a\x00"), 0x8F),
    "a filter with + inside a level": (subscribe(version=5, filters=b"\x00\x02a+\x00"), 0x8F),
    "DISCONNECT that gives a session an expiry": (b"\xe0\x07\x00\x05\x11\x00\x00\x00\x05", 0x82),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED_5.values(), ids=MALFORMED_5)
def test_a_wrong_packet_of_mqtt_5_is_refused_by_name(data: bytes, reason: int) -> None:
    assert failure_of(5, data) == reason


def test_publishes_before_a_failure_are_returned() -> None:
    session = opened()
    assert len(session.feed(publish() + publish(packet_id=2) + b"\x00\x00" + publish(packet_id=3))) == 2
    assert session.failure is not None
    assert session.feed(publish(packet_id=4)) == []


@pytest.mark.parametrize("version", [4, 5])
def test_success_is_one_short_answer_each(version: int) -> None:
    session = opened(version)
    properties = b"" if version == 5 else None
    data = b"".join(publish(packet_id=n, properties=properties) for n in (1, 2, 3))
    publishes = session.feed(data)
    assert session.inflight == 3
    assert session.acknowledge(publishes, None) == b"@\x02\x00\x01@\x02\x00\x02@\x02\x00\x03"
    session.answered(3)
    assert session.inflight == 0


def test_a_refusal_of_mqtt_5_has_its_reason_and_a_text_if_the_client_wants_one() -> None:
    session = opened(5)
    publishes = session.feed(publish(properties=b""))
    assert session.acknowledge(publishes, [0x99], lambda _: "no") == b"@\x09\x00\x01\x99\x05\x1f\x00\x02no"
    silent = opened(5, properties=b"\x17\x00")
    publishes = silent.feed(publish(properties=b""))
    assert silent.acknowledge(publishes, [0x99], lambda _: "no") == b"@\x03\x00\x01\x99"


def test_a_text_too_large_for_the_client_is_left_out() -> None:
    session = opened(5, properties=b"\x27\x00\x00\x00\x80")
    publishes = session.feed(publish(properties=b""))
    assert session.acknowledge(publishes, [0x99], lambda _: "x" * 128) == b"@\x03\x00\x01\x99"
    assert session.farewell(0x8B, "x" * 128) == b"\xe0\x01\x8b"


def test_more_in_flight_than_the_receive_maximum_ends_an_mqtt_5_session() -> None:
    session = opened(5)
    session.feed(b"".join(publish(packet_id=n, properties=b"") for n in range(1, 10)))
    assert session.failure is not None
    assert session.failure.reason == 0x93


def test_qos_0_is_not_in_flight() -> None:
    session = opened(5)
    session.feed(publish(qos=0, properties=b"") * 100)
    assert session.failure is None
    assert session.inflight == 0


def test_qos_2_is_delivered_once_however_often_it_is_sent() -> None:
    session = opened()
    publishes = session.feed(publish(qos=2))
    assert session.feed(publish(qos=2, flags=0x08)) == []
    assert session.take_output() == b"", "the first PUBREC still waits for the disk"
    assert session.acknowledge(publishes, None) == b"P\x02\x00\x01"
    session.answered(1, session.qos_2_ids(publishes, None))
    assert session.feed(publish(qos=2, flags=0x08)) == []
    assert session.take_output() == b"P\x02\x00\x01"
    session.feed(b"\x62\x02\x00\x01")
    assert session.take_output() == b"p\x02\x00\x01"
    assert session.take_released() == [1]
    assert len(session.feed(publish(qos=2))) == 1, "the id is free again"


def test_a_release_of_an_unknown_id_says_so_in_mqtt_5() -> None:
    session = opened(5)
    session.feed(b"\x62\x02\x00\x07")
    assert session.take_output() == b"p\x03\x00\x07\x92"


def test_a_resumed_session_remembers_its_qos_2_ids() -> None:
    session = ServerSession(LIMITS)
    session.feed(connect(flags=0))
    assert session.accept(session_present=True, received=[1]) == b"\x20\x02\x01\x00"
    assert session.feed(publish(qos=2, flags=0x08)) == []
    assert session.take_output() == b"P\x02\x00\x01"


def test_subscriptions_are_refused_each_by_its_code() -> None:
    session = opened(4)
    session.feed(subscribe(version=4, filters=b"\x00\x01a\x00\x00\x01b\x01"))
    assert session.take_output() == b"\x90\x04\x00\x01\x80\x80"
    session = opened(5)
    session.feed(subscribe(version=5))
    assert session.take_output() == b"\x90\x04\x00\x01\x00\x83"
    session.feed(packet(0xA2, b"\x00\x01\x00\x00\x01a"))
    assert session.take_output() == b"\xb0\x04\x00\x01\x00\x11"


def test_a_ping_is_answered() -> None:
    session = opened()
    session.feed(b"\xc0\x00")
    assert session.take_output() == b"\xd0\x00"


@pytest.mark.parametrize(
    ("version", "goodbye", "stays"),
    [
        (4, b"\xe0\x00", False),
        (5, b"\xe0\x00", False),
        (5, b"\xe0\x01\x00", False),
        (5, b"\xe0\x01\x04", True),
    ],
)
def test_a_goodbye_takes_the_will_away_unless_it_asks_for_it(
    version: int, goodbye: bytes, stays: bool
) -> None:
    will = b"\x00\x01w\x00\x01x"
    session = opened(version, flags=0x06, rest=(b"\x00" if version == 5 else b"") + will)
    assert session.will is not None
    session.feed(goodbye + publish())
    assert session.disconnected
    assert (session.will is not None) is stays


def test_what_follows_the_connect_waits_for_the_verdict() -> None:
    session = ServerSession(LIMITS)
    assert session.feed(connect() + publish()) == []
    assert session.feed(publish(packet_id=2)) == []
    session.accept(session_present=False)
    assert len(session.feed(b"")) == 2


def test_too_much_before_the_verdict_is_refused() -> None:
    session = ServerSession(LIMITS)
    session.feed(connect())
    session.feed(bytes(70_000))
    assert session.failure is not None
    assert session.failure.reason == 0x97


def test_the_connack_of_mqtt_5_announces_the_limits() -> None:
    session = ServerSession(LIMITS)
    session.feed(connect(version=5, keep_alive=0, properties=b"\x11\xff\xff\xff\xff"))
    connack = session.accept(session_present=False, assigned_client_id="given")
    for announced in (
        b"\x21\x00\x08",
        b"\x22\x00\x04",
        b"\x27\x00\x00\x10\x00",
        b"\x25\x00",
        b"\x13\x02\x58",
    ):
        assert announced in connack
    assert b"\x11\x00\x00\x0e\x10" in connack
    assert b"\x12\x00\x05given" in connack
    assert session.session_expiry_s == 3600


CONVERSATIONS = {
    4: connect()
    + publish(topic=b"a/b", payload=b"x" * 200)
    + publish(qos=0)
    + publish(qos=2, packet_id=9)
    + b"\xc0\x00"
    + publish(packet_id=300, payload=b"")
    + subscribe(version=4)
    + b"\xe0\x00",
    5: connect(version=5)
    + publish(properties=b"\x23\x00\x01", payload=b"x" * 200)
    + publish(topic=b"", properties=b"\x23\x00\x01", packet_id=2)
    + publish(qos=2, packet_id=9, properties=b"")
    + b"\xc0\x00"
    + b"\xe0\x02\x00\x00",
}


def said(version: int, pieces: list[bytes]) -> tuple[list[Publish], bytes, bool]:
    session = ServerSession(LIMITS)
    publishes: list[Publish] = []
    for piece in pieces:
        publishes += session.feed(piece)
        if session.connect is not None:
            session.accept(session_present=False)
            publishes += session.feed(b"")
    assert session.failure is None
    assert session.version == version
    return publishes, session.take_output(), session.disconnected


@pytest.mark.parametrize("version", [4, 5])
def test_a_conversation_means_the_same_wherever_it_is_cut(version: int) -> None:
    data = CONVERSATIONS[version]
    whole = said(version, [data])
    assert len(whole[0]) >= 3
    assert whole[2]
    for cut in range(1, len(data)):
        assert said(version, [data[:cut], data[cut:]]) == whole
    assert said(version, [data[n : n + 1] for n in range(len(data))]) == whole


def test_no_packet_is_larger_than_the_client_takes() -> None:
    """MQTT-3.1.2-24, for each packet that grows with what it answers."""
    smallest = b"\x27" + (128).to_bytes(4, "big")
    session = ServerSession(LIMITS)
    session.feed(connect(version=5, client="", properties=smallest))
    assert len(session.refuse(0x87, "x" * 200)) == 5
    session = ServerSession(LIMITS)
    session.feed(connect(version=5, client="", properties=smallest))
    assert len(session.accept(session_present=False, assigned_client_id="x" * 32)) <= 128
    session.feed(subscribe(version=5, filters=b"\x00\x01a\x00" * 122))
    assert len(session.take_output()) == 128 - 1
    session.feed(subscribe(version=5, filters=b"\x00\x01a\x00" * 125))
    assert session.failure is not None
    assert session.failure.reason == 0x95
