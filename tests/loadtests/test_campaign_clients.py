"""What simulated devices say and hear: bytes cut anywhere, and the other side by the libraries."""

from __future__ import annotations

import h11
import msgspec
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from loadtests.clients.client import Answer, Gone
from loadtests.clients.http import HttpClient
from loadtests.clients.mqtt import MqttClient
from loadtests.clients.websocket import WebSocketClient
from loadtests.payloads import payload_of

READINGS = [(1, 1_764_000_000_000), (2, 1_764_000_001_000)]
CONNACK = b"\x20\x03\x00\x00\x00"


def test_telemetry_is_one_object_or_a_list() -> None:
    one = msgspec.json.decode(payload_of("telemetry", READINGS[:1]))
    assert (one["seq"], one["ts"]) == READINGS[0]
    many = msgspec.json.decode(payload_of("telemetry", READINGS))
    assert [(each["seq"], each["ts"]) for each in many] == READINGS


def test_oversize_is_telemetry_and_malformed_is_json() -> None:
    assert len(payload_of("oversize", READINGS[:1])) > 4000
    assert msgspec.json.decode(payload_of("oversize", READINGS[:1]))["seq"] == 1
    assert "metrics" not in msgspec.json.decode(payload_of("malformed", READINGS[:1]))


# MQTT.


def mqtt(version: int = 5) -> MqttClient:
    client = MqttClient("d", "dt/a/d/s", version=version, keep_alive_s=60)
    client.open()
    return client


@pytest.mark.parametrize(
    ("version", "packet"),
    [
        (4, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01d"),
        (5, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01d"),
    ],
)
def test_mqtt_connects(version: int, packet: bytes) -> None:
    assert MqttClient("d", "t", version=version, keep_alive_s=60).open() == packet


@pytest.mark.parametrize(
    ("version", "packet"),
    [(4, b"\x32\x0d\x00\x08dt/a/d/s\x00\x02x"), (5, b"\x32\x0e\x00\x08dt/a/d/s\x00\x02\x00x")],
)
def test_mqtt_publishes_at_qos_1(version: int, packet: bytes) -> None:
    assert mqtt(version).publish(READINGS[:1], b"x") == packet


def test_mqtt_writes_lengths_of_more_than_a_byte() -> None:
    packet = mqtt(4).publish(READINGS[:1], b"x" * 20_000)
    assert packet[1:4] == b"\xac\x9c\x01"  # 20,012
    assert len(packet) == 4 + 20_012


def test_mqtt_hears_answers_cut_at_every_byte() -> None:
    said = CONNACK + b"\x40\x02\x00\x02\xd0\x00" + b"\x40\x03\x00\x03\x99" + b"\x40\x04\x00\x04\x97\x00"
    for cut in range(len(said) + 1):
        client = mqtt()
        for seq in (1, 2, 3):
            client.publish([(seq, 0)], b"x")
        answers = client.hear(said[:cut]) + client.hear(said[cut:])
        assert client.ready
        assert answers == [Answer((1,)), Answer((2,), "content"), Answer((3,), "over_limit")]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\x20\x03\x00\x87\x00", "CONNACK 0x87"),
        (b"\xe0\x01\x8e", "DISCONNECT 0x8e"),
        (b"\xe0\x00", "DISCONNECT 0x00"),
        (b"\x40\x02\x00\x63", "an answer to what was not asked"),
        (b"\x40\x03\x00\x02\x83", "draining"),
        (b"\x90\x00", "a strange packet 0x90"),
        (b"\x40\xff\xff\xff\xff\xff", "a length of more than 4 bytes"),
    ],
)
def test_mqtt_is_gone_when_it_hears(said: bytes, why: str) -> None:
    client = mqtt()
    client.publish(READINGS[:1], b"x")
    with pytest.raises(Gone, match=why):
        client.hear(said)


def test_mqtt_hears_a_long_packet_once_it_is_whole() -> None:
    client = mqtt()
    long = b"\x20\x83\x01\x00\x00" + b"x" * 129
    assert client.hear(long[:2]) == []
    assert client.hear(long[2:100]) == []
    assert not client.ready
    assert client.hear(long[100:]) == []
    assert client.ready


# HTTP.


def http() -> tuple[HttpClient, h11.Connection]:
    client = HttpClient("d", "/v1/x", "gateway:80", list_size=2)
    client.open()
    return client, h11.Connection(h11.SERVER)


def answer(server: h11.Connection, status: int, body: bytes) -> bytes:
    parts = [
        h11.Response(status_code=status, headers=[("content-length", str(len(body)))]),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ]
    said = b"".join(server.send(part) or b"" for part in parts)
    server.start_next_cycle()
    return said


def key_of(server: h11.Connection, said: bytes) -> str:
    server.receive_data(said)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    while not isinstance(server.next_event(), h11.EndOfMessage):
        pass
    return dict(request.headers)[b"idempotency-key"].decode()


def test_http_posts_with_a_key_and_keeps_the_connection() -> None:
    client, server = http()
    assert client.next_count() == 2
    assert key_of(server, client.publish(READINGS, b"[]")) == "d-1-2"
    assert client.next_count() == 0
    said = answer(server, 202, b"{}")
    assert client.hear(said[:10]) == []
    assert client.hear(said[10:]) == [Answer((1, 2))]
    assert key_of(server, client.publish([(3, 0)], b"{}")) == "d-3-3"


def test_http_hears_a_refusal_by_its_name() -> None:
    client, server = http()
    key_of(server, client.publish(READINGS, b"[]"))
    said = answer(server, 413, b'{"type": "urn:headworks:problem:too-large", "status": 413}')
    assert client.hear(said) == [Answer((1, 2), "too_large")]


def test_http_asks_again_with_the_same_key() -> None:
    client, server = http()
    first = key_of(server, client.publish(READINGS[:1], b"{}"))
    with pytest.raises(Gone, match="503 unsettled"):
        client.hear(answer(server, 503, b'{"type": "urn:headworks:problem:unsettled"}'))
    client.open()
    assert client.next_count() == 1
    assert key_of(h11.Connection(h11.SERVER), client.publish(READINGS[:1], b"{}")) == first


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "400"),
        (b"not http\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}", "500"),
    ],
)
def test_http_is_gone_when_it_hears_what_it_did_not_ask(said: bytes, why: str) -> None:
    client, _ = http()
    with pytest.raises(Gone, match=why):
        client.hear(said)


# WebSocket.


def websocket() -> tuple[WebSocketClient, WSConnection]:
    client = WebSocketClient("gateway:80", "environment", "acme/d", list_size=1)
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(client.open())
    assert isinstance(next(iter(server.events())), Request)
    client.hear(server.send(AcceptConnection(subprotocol="headworks.v1.json")))
    assert client.ready
    return client, server


def frames(server: WSConnection, said: bytes) -> list[object]:
    server.receive_data(said)
    return [msgspec.json.decode(event.data) for event in server.events() if isinstance(event, TextMessage)]


def test_a_websocket_sends_frames_and_hears_answers_cut_at_every_byte() -> None:
    client, server = websocket()
    payload = payload_of("telemetry", READINGS)
    (frame,) = frames(server, client.publish(READINGS, payload))
    assert frame == {
        "id": 2,
        "stream": "environment",
        "device": "acme/d",
        "data": msgspec.json.decode(payload),
    }
    frames(server, client.publish([(3, 0)], b"{}"))
    text = '{"ack":[2],"refused":[{"id":3,"reason":"malformed","detail":"-"}]}'
    answers: list[Answer] = []
    for byte in server.send(TextMessage(data=text)):
        answers += client.hear(bytes((byte,)))
    assert answers == [Answer((1, 2)), Answer((3,), "malformed")]


def test_a_websocket_answers_pings() -> None:
    client, server = websocket()
    assert client.hear(server.send(Ping(payload=b"7"))) == []
    server.receive_data(client.reply())
    assert [type(event) for event in server.events()] == [Pong]
    assert client.reply() == b""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (CloseConnection(code=1012), "close 1012"),
        (TextMessage(data='{"ack":[9]}'), "an answer to what was not asked"),
        (TextMessage(data="nonsense"), "an answer that cannot be read"),
    ],
    ids=str,
)
def test_a_websocket_is_gone_when_it_hears(said: CloseConnection | TextMessage, why: str) -> None:
    client, server = websocket()
    with pytest.raises(Gone, match=why):
        client.hear(server.send(said))


def test_a_websocket_that_is_not_let_in_is_gone() -> None:
    client = WebSocketClient("gateway:80", "s", None, list_size=1)
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(client.open())
    list(server.events())
    with pytest.raises(Gone, match="no upgrade: 403"):
        client.hear(server.send(RejectConnection(status_code=403)))


def test_a_websocket_that_drains_is_asked_again_later() -> None:
    client, server = websocket()
    client.publish([(1, 0)], b"{}")
    with pytest.raises(Gone, match="draining"):
        client.hear(server.send(TextMessage(data='{"refused":[{"id":1,"reason":"draining"}]}')))
