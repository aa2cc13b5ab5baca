"""A coverage-guided fuzzer for the MQTT session: `python -m tests.fuzz.fuzz_mqtt -max_total_time=60`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["protocols"]):
    from protocols.mqtt.session import ServerSession
    from tests.support.mqtt_packets import LIMITS, connect


def converse(session: ServerSession, pieces: list[bytes]) -> None:
    """Feed pieces as a driver does, answer everything, and check what must always hold."""
    for piece in pieces:
        publishes = session.feed(piece)
        if session.connect is not None:
            session.accept(session_present=False)
            publishes += session.feed(b"")
        for topic, payload, qos, packet_id in publishes:
            assert isinstance(topic, bytes)
            assert isinstance(payload, bytes)
            assert len(packet_id) == (2 if qos else 0)
        session.acknowledge(publishes, None)
        session.answered(sum(1 for each in publishes if each[2]), session.qos_2_ids(publishes, None))
        session.take_output()
        session.take_released()
        assert session.inflight == 0 or session.failure is not None
        if session.failure is not None:
            assert 0x80 <= session.failure.reason <= 0xA2
            assert session.failure.text
            session.farewell(session.failure.reason, session.failure.text)
            return


def one_input(data: bytes) -> None:
    """Take the first byte as how to cut the rest."""
    if not data:
        return
    size, data = data[0] + 1, data[1:]
    session = ServerSession(LIMITS)
    greeting = [connect(version=4 + (size & 1))] if size % 3 else []
    converse(session, greeting + [data[start : start + size] for start in range(0, len(data), size)])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
