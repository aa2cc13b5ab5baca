"""Sessions over connections, workers and restarts: take-over, QoS 2 ids, wills and their delays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ingest.counters import Closing
from ingest.mqtt.sessions import READ_SESSIONS
from protocols.mqtt.wire import write_binary, write_string, write_varint
from routing.limits.terms import Rates
from routing.tenancy.identity import Kind
from runtime import clock
from tests.support.mqtt_packets import packet, publish
from tests.support.mqtt_rig import HELD_BYTES_MAX, Rig, RigWorker, Wire

CLEAN = 0x02


def connect(
    *, clean: bool = False, expiry_s: int = 60, will: bytes | None = None, delay_s: int = 0, client: str = "c"
) -> bytes:
    """Return a CONNECT of MQTT 5 with the identity `d` of tenant `acme`, whose will has QoS 1."""
    properties = b"\x11" + expiry_s.to_bytes(4, "big")
    flags = 0xC0 | (CLEAN if clean else 0) | (0x0C if will is not None else 0)
    body = write_binary(b"MQTT") + bytes((5, flags)) + (60).to_bytes(2, "big")
    body += write_varint(len(properties)) + properties + write_string(client)
    if will is not None:
        of_will = b"\x18" + delay_s.to_bytes(4, "big")
        body += write_varint(len(of_will)) + of_will + write_binary(b"dt/acme/d/will") + write_binary(will)
    return packet(0x10, body + write_string("user") + write_binary(b"d"))


def qos_2(number: int, payload: bytes = b"p") -> bytes:
    return publish(topic=b"dt/acme/d/s", payload=payload, qos=2, packet_id=number, properties=b"")


def qos_1(number: int, payload: bytes) -> bytes:
    return publish(topic=b"dt/acme/d/s", payload=payload, packet_id=number, properties=b"")


def pubrel(number: int) -> bytes:
    return packet(0x62, number.to_bytes(2, "big"))


def session_present(wire: Wire) -> bool:
    assert wire.said[:1] == b"\x20", wire.said
    assert wire.said[3] == 0, wire.said
    return wire.said[2] == 1


async def admitted(worker: RigWorker, data: bytes) -> Wire:
    """Connect, and wait for the CONNACK."""
    wire = worker.connect(data)
    async with asyncio.timeout(5):
        while not wire.said:
            await asyncio.sleep(0.001)
    return wire


async def test_a_connect_whose_client_has_hung_up_takes_nothing_over(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        there = await admitted(rig.workers[0], connect())
        stale = Wire(rig.workers[0])
        stale.connection.peer_left()
        stale.send(connect())
        assert stale.closed
        assert not stale.said
        assert not there.closed


async def test_what_a_client_sends_at_once_with_its_connect_counts_though_it_has_hung_up(
    tmp_path: Path,
) -> None:
    async with Rig(tmp_path) as rig:
        hasty = Wire(rig.workers[0])
        hasty.connection.peer_left()
        hasty.send(connect() + qos_1(1, b"{}"))
        assert session_present(hasty) is False


async def test_the_ids_of_reads_that_share_a_group_are_all_stored(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        worker.freeze()
        wire.send(qos_2(1))
        wire.send(qos_2(2))
        worker.thaw()
        await rig.settle()
        assert worker.stored_ids() == {1, 2}
        wire.send(pubrel(1))
        await rig.settle()
        assert worker.stored_ids() == {2}


async def test_what_was_held_is_not_taken_for_stored(tmp_path: Path) -> None:
    """Its PUBREC was never sent; if the id were kept, the client's next try would be answered, and lost."""
    async with Rig(tmp_path, group_bytes_max=10) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        worker.freeze()
        wire.send(qos_2(1, b"1" * 20))
        wire.send(qos_2(2, b"2" * 20))
        wire.lose()
        worker.thaw()
        await rig.settle()
        assert worker.stored_ids() == {1}
        again = await admitted(worker, connect())
        assert session_present(again)
        again.send(qos_2(1, b"1" * 20) + qos_2(2, b"2" * 20))
        await rig.settle()
        assert again.said.endswith(b"P\x02\0\x01P\x02\0\x02")
        assert worker.payloads() == [b"1" * 20, b"2" * 20]


async def test_what_was_held_is_answered_before_the_connection_is_closed(tmp_path: Path) -> None:
    async with Rig(tmp_path, group_bytes_max=10) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect(expiry_s=0))
        worker.freeze()
        wire.send(publish(topic=b"dt/acme/d/s", payload=b"1" * 20, properties=b""))
        wire.send(publish(topic=b"dt/acme/d/s", payload=b"2" * 20, packet_id=2, properties=b""))
        worker.hub.begin_drain()
        assert not wire.closed
        worker.thaw()
        await rig.settle()
        assert wire.closed
        assert b"@\x02\0\x01@\x02\0\x02\xe0" in wire.said
        assert worker.payloads() == [b"1" * 20, b"2" * 20]


async def test_a_restart_keeps_the_session_and_its_ids(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        wire = await admitted(rig.workers[0], connect())
        wire.send(qos_2(7))
        await rig.settle()
        wire.lose()
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        assert session_present(wire)
        wire.send(qos_2(7))
        await rig.settle()
        assert wire.said.endswith(b"P\x02\0\x07")
        assert worker.payloads() == [], "the first run has stored it"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_session_moves_with_its_ids_to_the_connection_that_takes_it_over(
    tmp_path: Path, workers: int
) -> None:
    async with Rig(tmp_path, workers=workers) as rig:
        first = await admitted(rig.workers[0], connect())
        first.send(qos_2(3))
        second = await admitted(rig.workers[-1], connect())
        assert first.closed
        assert b"\x8e" in first.said
        assert b"P\x02\0\x03" in first.said, "answered before it is closed"
        assert session_present(second)
        second.send(qos_2(3) + pubrel(3))
        await rig.settle()
        assert second.said.endswith(b"P\x02\0\x03p\x02\0\x03")
        assert [payload for worker in rig.workers for payload in worker.payloads()] == [b"p"]


async def test_what_moves_to_another_worker_is_delivered_after_what_it_left_there(tmp_path: Path) -> None:
    async with Rig(tmp_path, workers=2) as rig:
        old, new = rig.workers
        first = await admitted(old, connect(client="a"))
        old.sink.takes.clear()
        first.send(qos_1(1, b"first"))
        while not first.said.endswith(b"@\x02\0\x01"):
            await asyncio.sleep(0.001)
        second = await admitted(new, connect(client="b"))
        second.send(qos_1(1, b"second"))
        while not second.said.endswith(b"@\x02\0\x01"):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert new.payloads() == [], "acknowledged, but not delivered before the first"
        old.sink.takes.set()
        await rig.settle()
        assert (old.payloads(), new.payloads()) == ([b"first"], [b"second"])
        first.send(qos_1(2, b"third"))
        await rig.settle()
        assert old.sink.groups[-1].after == [], "nothing waits anywhere"


@pytest.mark.parametrize("workers", [1, 2])
async def test_of_two_that_wait_for_a_session_the_last_gets_it(tmp_path: Path, workers: int) -> None:
    async with Rig(tmp_path, workers=workers) as rig:
        first = await admitted(rig.workers[0], connect())
        rig.workers[0].freeze()
        first.send(qos_2(3))
        second = rig.workers[-1].connect(connect())
        third = rig.workers[-1].connect(connect())
        rig.workers[0].thaw()
        await rig.settle()
        assert second.closed
        assert not second.said
        assert session_present(third)
        assert not third.closed


async def test_a_session_is_kept_for_a_client_that_left_before_it_was_let_in(tmp_path: Path) -> None:
    async with Rig(tmp_path, workers=2) as rig:
        first = await admitted(rig.workers[0], connect())
        first.send(qos_2(3))
        second = rig.workers[1].connect(connect())
        second.lose()
        await rig.settle()
        third = await admitted(rig.workers[0], connect())
        assert session_present(third)
        third.send(qos_2(3))
        await rig.settle()
        assert [payload for worker in rig.workers for payload in worker.payloads()] == [b"p"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("delay_s", "clean", "sent"),
    [(0, False, True), (60, False, False), (60, True, True)],
    ids=["no delay", "resumed in time", "the session ends"],
)
@pytest.mark.parametrize("connected", [True, False])
async def test_a_will_is_sent_unless_its_client_comes_back_in_time(
    tmp_path: Path, *, workers: int, delay_s: int, clean: bool, sent: bool, connected: bool
) -> None:
    """MQTT 5, 3.1.3.2.2: the delay ends with the session; a new connection to it before that undoes it."""
    async with Rig(tmp_path, workers=workers) as rig:
        first = await admitted(rig.workers[0], connect(will=b"gone", delay_s=delay_s))
        if not connected:
            first.lose()
        second = await admitted(rig.workers[-1], connect(clean=clean))
        assert session_present(second) is not clean
        await rig.settle()
        await rig.settle()
        assert rig.workers[0].payloads() == ([b"gone"] if sent else [])


async def test_a_will_is_sent_when_its_delay_or_its_session_is_over(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        for client, delay_s, expiry_s in (("a", 1, 60), ("b", 60, 1), ("c", 60, 60), ("d", 0, 60)):
            data = connect(will=client.encode(), delay_s=delay_s, expiry_s=expiry_s, client=client)
            (await admitted(worker, data)).lose()
        await rig.settle()
        assert worker.payloads() == [b"d"]
        async with asyncio.timeout(5):
            while len(worker.payloads()) < 3:
                await asyncio.sleep(0.01)
        assert sorted(worker.payloads()) == [b"a", b"b", b"d"]
        worker.hub.send_wills()
        await rig.settle()
        assert sorted(worker.payloads()) == [b"a", b"b", b"c", b"d"]


async def test_a_goodbye_takes_the_will_back(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect(will=b"gone"))
        wire.send(packet(0xE0, b""))
        wire = await admitted(worker, connect(will=b"sent all the same", client="other"))
        wire.send(packet(0xE0, b"\x04"))
        await rig.settle()
        assert worker.payloads() == [b"sent all the same"]


async def test_a_client_that_waits_for_room_is_heard_and_answered(tmp_path: Path) -> None:
    """Were it not read, it would miss its PINGRESP and come back with all the others."""
    async with Rig(tmp_path, group_bytes_max=10) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        worker.freeze()
        wire.send(qos_1(1, b"1" * 20))
        wire.send(qos_1(2, b"2" * 20) + packet(0xC0, b""))
        assert wire.reading
        assert wire.said.endswith(b"\xd0\0")
        for number in range(3, 8):
            wire.send(qos_1(number, bytes(4000)))
        assert not wire.reading, "it has filled what one connection may hold"
        worker.thaw()
        await rig.settle()
        assert wire.reading
        assert wire.said.count(b"@\x02") == 7
        assert worker.hub.held_bytes == 0


async def test_all_connections_together_hold_no_more_than_their_bound(tmp_path: Path) -> None:
    async with Rig(tmp_path, group_bytes_max=10) as rig:
        [worker] = rig.workers
        wires = [await admitted(worker, connect(client=f"c{number}")) for number in range(12)]
        worker.freeze()
        for wire in wires:
            for number in range(1, 4):
                wire.send(qos_1(number, bytes(3500)) if wire.reading else b"")
        assert worker.hub.held_bytes < HELD_BYTES_MAX + 4000 * len(wires), "one more read of each"
        assert not wires[-1].reading
        for wire in wires:
            wire.lose()
        assert worker.hub.held_bytes == 0
        assert worker.refused() > 20
        worker.thaw()
        await rig.settle()
        assert len(worker.payloads()) == 1
        assert not worker.spool._waiting_for_room


async def test_a_peer_that_does_not_take_its_last_words_is_cut(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        wire.takes = False
        second = await admitted(worker, connect())
        assert not wire.closed
        worker.turn(4)
        assert wire.closed
        await rig.settle()
        assert wire.connection not in worker.hub.connections
        second.takes = False
        worker.hub.begin_drain()
        worker.turn(8)
        assert second.closed


async def test_a_silent_client_that_is_not_read_is_let_be_for_a_minute_more(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        wire.connection.pause_writing()
        worker.turn(95)
        assert wire.connection.closing is None
        worker.turn(155)
        assert wire.connection.closing is Closing.KEEP_ALIVE


async def test_a_client_whose_packets_wait_in_the_kernel_is_not_silent(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        wire.unread = True
        worker.turn(95)
        assert wire.connection.closing is None, "it is the worker that is late"
        wire.unread = False
        worker.turn(97)
        assert wire.connection.closing is Closing.KEEP_ALIVE


async def test_a_connect_that_waits_in_the_kernel_is_not_too_late(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = Wire(worker)
        wire.unread = True
        worker.turn(60)
        assert not wire.closed, "it is the worker that is late"
        wire.unread = False
        worker.turn(62)
        assert wire.closed


async def test_a_credential_that_has_ended_does_not_wait_for_what_is_unread(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        rig.expires_s = clock.unix_s()
        wire = await admitted(worker, connect())
        wire.unread = True
        worker.turn(95)
        assert wire.connection.closing is Closing.REVOKED


async def test_a_credential_ends_when_it_says_whatever_the_keep_alive(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        rig.expires_s = clock.unix_s() + 1
        wire = await admitted(worker, connect())
        async with asyncio.timeout(5):
            while not wire.closed:
                await asyncio.sleep(0.05)
                worker.turn(0)
        assert wire.connection.closing is Closing.REVOKED


async def test_at_its_cap_a_device_may_still_take_its_own_session_over(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.rates = Rates(messages_per_s=0, bytes_per_s=0, burst_s=1, connections_max=1)
    async with rig:
        [worker] = rig.workers
        first = await admitted(worker, connect())
        second = await admitted(worker, connect())
        assert session_present(second)
        assert first.closed
        third = worker.connect(connect(client="another"))
        assert third.said[3] == 0x97
        second.lose()
        await admitted(worker, connect(client="another"))


async def test_a_gateway_and_a_device_of_one_name_have_sessions_of_their_own(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        device = await admitted(worker, connect())
        rig.kind = Kind.GATEWAY
        gateway = await admitted(worker, connect())
        assert not device.closed
        assert not session_present(gateway)


async def test_a_session_that_ended_does_not_come_back_with_its_ids(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        wire.send(qos_2(1))
        await rig.settle()
        wire.lose()
        wire = await admitted(worker, connect(expiry_s=0))
        assert session_present(wire)
        wire.lose()
        await rig.settle()
        assert not worker.store.rows(READ_SESSIONS)


async def test_what_is_stored_of_a_session_is_what_was_said_last(tmp_path: Path) -> None:
    """A connection that ends and one that comes back write the same row; the later must win."""
    async with Rig(tmp_path) as rig:
        [worker] = rig.workers
        wire = await admitted(worker, connect())
        wire.send(qos_2(1))
        await rig.settle()
        worker.spool.store([("SELECT 1", ())])  # a transaction is due, but not yet
        wire.lose()
        wire = await admitted(worker, connect())
        wire.send(pubrel(1))
        await rig.settle()
        await asyncio.sleep(0.1)
        await rig.settle()
        assert worker.stored_ids() == set()


async def test_sessions_that_are_over_leave_no_row_at_the_next_start(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        (await admitted(rig.workers[0], connect())).lose()
        await rig.settle()
        rig.workers[0].spool.join([("UPDATE sessions SET expires_s = 1", ())])
        await rig.settle()
    async with Rig(tmp_path) as rig:
        await rig.settle()
        assert not rig.workers[0].store.rows(READ_SESSIONS)
