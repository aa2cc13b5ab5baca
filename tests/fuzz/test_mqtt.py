"""Any bytes at all: publishes, answers, or a failure with a name; nothing else ever leaves a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.mqtt.session import ServerSession
from tests.fuzz.fuzz_mqtt import converse
from tests.support.mqtt_packets import LIMITS, connect, packet, publish, subscribe

PACKETS = st.one_of(
    st.binary(max_size=64),
    st.builds(packet, st.integers(0, 255), st.binary(max_size=64)),
    st.builds(
        publish,
        topic=st.binary(max_size=8),
        payload=st.binary(max_size=8),
        qos=st.integers(0, 2),
        packet_id=st.integers(0, 9),
        properties=st.none() | st.binary(max_size=8),
    ),
    st.builds(
        connect, version=st.integers(3, 6), flags=st.integers(0, 255), properties=st.binary(max_size=8)
    ),
    st.builds(subscribe, version=st.sampled_from([4, 5]), filters=st.binary(max_size=8)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PACKETS, max_size=6), st.sampled_from([4, 5]), st.booleans())
def test_any_packets_are_taken_or_refused_by_name(pieces: list[bytes], version: int, greeted: bool) -> None:
    session = ServerSession(LIMITS)
    converse(session, [*([connect(version=version)] if greeted else []), *pieces])


def test_the_coverage_guided_fuzzer_finds_nothing_in_a_short_run() -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_mqtt", "-runs=20000", "-max_len=256", "-seed=1"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
