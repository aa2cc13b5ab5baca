"""What the benchmarks send. All of it is made from one seed, so that every run measures the same bytes."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

from ingest.records import Encoding, Group, Run
from tests.support import mqtt_packets

SEED: Final = 1883
TENANT: Final = "acme"
STREAM: Final = "metrics"
NOW_MS: Final = 1_764_000_000_000
LIST_RECORDS: Final = 100
RUN_RECORDS: Final = 9
"""So many payloads of one device are about 1 KiB in a stored group."""


def measurements(count: int) -> list[dict[str, Any]]:
    """Return measurements of one device, about 105 bytes each as JSON and 80 as MessagePack."""
    chance = random.Random(SEED)
    return [
        {
            "ts": NOW_MS + 1000 * number,
            "seq": 10_000 + number,
            "metrics": {
                "temperature": round(chance.uniform(15, 30), 2),
                "humidity": round(chance.uniform(30, 60), 1),
                "door": chance.random() < 0.5,
                "state": chance.choice(["ok", "low", "high"]),
            },
        }
        for number in range(count)
    ]


def payloads(count: int, encoding: Encoding) -> list[bytes]:
    """Return `count` payloads; one that is a list holds `LIST_RECORDS` measurements."""
    encode = msgspec.json.encode if encoding <= Encoding.JSON_LIST else msgspec.msgpack.encode
    if encoding in {Encoding.JSON, Encoding.MSGPACK}:
        return [encode(each) for each in measurements(count)]
    return [encode(measurements(LIST_RECORDS))] * count


def device(number: int) -> str:
    """Return the name of a device."""
    return f"pump-{number:05d}"


def topic(number: int = 0) -> bytes:
    """Return the topic of a device."""
    return f"dt/{TENANT}/{device(number)}/{STREAM}".encode()


def connect(version: int) -> bytes:
    """Return a CONNECT of MQTT 3.1.1 (4) or MQTT 5 (5)."""
    return mqtt_packets.connect(version=version, client="bench")


def publishes(count: int, version: int, *, qos: int = 1, properties: bytes = b"") -> bytes:
    """Return what one read gives: `count` publishes of one device to its topic."""
    return b"".join(
        mqtt_packets.publish(
            topic=topic(),
            payload=payload,
            qos=qos,
            packet_id=packet_id,
            properties=properties if version == 5 else None,
        )
        for packet_id, payload in enumerate(payloads(count, Encoding.JSON), start=1)
    )


def run(number: int, count: int, encoding: Encoding = Encoding.JSON) -> Run:
    """Return what one read of device `number` leaves in a group: `count` payloads."""
    of_payloads = payloads(count, encoding)
    records = count * (1 if encoding in {Encoding.JSON, Encoding.MSGPACK} else LIST_RECORDS)
    return Run(TENANT, device(number), STREAM, encoding, NOW_MS, records, of_payloads)


def group(devices: int, count: int, encoding: Encoding = Encoding.JSON) -> Group:
    """Return a group with `count` payloads of each of `devices`."""
    return Group("bench", "boot", 1, [run(number, count, encoding) for number in range(devices)])
