"""A load of MQTT 3.1.1 publishers on raw sockets that survive crashes and keep a ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json

from tests.support.mqtt_packets import connect


class Publisher:
    """One device: keeps `window` messages in flight, and sends again what was not acknowledged."""

    def __init__(self, name: str, window: int) -> None:
        self.name = name
        self._window = window
        self.seq = 0
        self.unacknowledged: dict[int, int] = {}
        self.acknowledged: set[tuple[str, int]] = set()

    def _packet(self, seq: int, *, again: bool) -> bytes:
        topic = f"dt/acme/{self.name}/crash".encode()
        payload = json.dumps({"ts": 1764000000000, "seq": seq, "metrics": {"v": seq}}).encode()
        packet_id = (seq % 65_535 + 1).to_bytes(2, "big")
        body = len(topic).to_bytes(2, "big") + topic + packet_id + payload
        size = len(body)
        head = bytes((0x3A if again else 0x32,))
        length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
        return head + length + body

    async def run(self, port: int, over: asyncio.Event) -> None:
        """Publish until `over`, then until everything is acknowledged."""
        while not over.is_set() or self.unacknowledged:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._session(port, over)
            await asyncio.sleep(0.05)

    async def _session(self, port: int, over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(connect(client=self.name, keep_alive=0))
            await reader.readexactly(4)
            for seq in sorted(self.unacknowledged.values()):
                writer.write(self._packet(seq, again=True))
            while not over.is_set() or self.unacknowledged:
                while len(self.unacknowledged) < self._window and not over.is_set():
                    self.seq += 1
                    self.unacknowledged[self.seq % 65_535 + 1] = self.seq
                    writer.write(self._packet(self.seq, again=False))
                answer = await reader.readexactly(4)
                seq = self.unacknowledged.pop(int.from_bytes(answer[2:], "big"))
                self.acknowledged.add((self.name, seq))
                await asyncio.sleep(0.001)
        finally:
            writer.transport.abort()

    def sent(self) -> set[tuple[str, int]]:
        return {(self.name, seq) for seq in range(1, self.seq + 1)}


class ExactlyOncePublisher(Publisher):
    """The same with QoS 2 and a kept session: `acknowledged` once the PUBREC is there."""

    def __init__(self, name: str, window: int) -> None:
        super().__init__(name, window)
        self.released: set[int] = set()

    def _connect(self) -> bytes:
        return connect(client=self.name, keep_alive=0, flags=0)

    def _publish(self, seq: int, *, again: bool) -> bytes:
        packet = bytearray(self._packet(seq, again=again))
        packet[0] += 2
        return bytes(packet)

    async def _session(self, port: int, over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(self._connect())
            connack = await reader.readexactly(4)
            assert connack[2] or not self.released, "a session with answered messages was forgotten"
            for packet_id in self.released:
                writer.write(b"\x62\x02" + packet_id.to_bytes(2, "big"))
            for seq in sorted(self.unacknowledged.values()):
                writer.write(self._publish(seq, again=True))
            while not over.is_set() or self.unacknowledged or self.released:
                while len(self.unacknowledged) + len(self.released) < self._window and not over.is_set():
                    self.seq += 1
                    self.unacknowledged[self.seq % 65_535 + 1] = self.seq
                    writer.write(self._publish(self.seq, again=False))
                answer = await reader.readexactly(4)
                packet_id = int.from_bytes(answer[2:], "big")
                if answer[0] == 0x50:
                    seq = self.unacknowledged.pop(packet_id)
                    self.acknowledged.add((self.name, seq))
                    self.released.add(packet_id)
                    writer.write(b"\x62\x02" + answer[2:])
                else:
                    assert answer[0] == 0x70, answer
                    self.released.discard(packet_id)
                await asyncio.sleep(0.001)
        finally:
            writer.transport.abort()
