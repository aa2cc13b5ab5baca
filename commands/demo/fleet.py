"""A simulated fleet: devices that publish telemetry over MQTT 3.1.1 and mutual TLS, and keep a ledger.

Small on purpose: it knows CONNECT, PUBLISH at QoS 1 and their answers. A device that loses its connection
comes back and sends what was not acknowledged again.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from ingest.pki import Issued
from runtime import clock

CONNACK_OK: Final = b"\x20\x02\x00\x00"
PUBACK_BYTES: Final = 4
RECONNECT_S: Final = (0.2, 2.0)
LATENCIES_KEPT: Final = 5000


class Tally:
    """What the fleet has sent and what was acknowledged to it."""

    def __init__(self) -> None:
        self.connected = 0
        self.sent = 0
        self.acknowledged = 0
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def quantile_s(self, share: float) -> float | None:
        """Return a quantile of the latest acknowledgements, in seconds."""
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Device:
    """One simulated device."""

    def __init__(self, tenant: str, name: str, issued: Issued, ca: Path, tally: Tally) -> None:
        self.name = name
        self._topic = f"dt/{tenant}/{name}/environment".encode()
        self._tally = tally
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._tls.load_cert_chain(issued.certificate, issued.key)
        self._random = random.Random(name)  # noqa: S311  # a simulation
        self._seq = 0
        self._unacknowledged: dict[int, tuple[bytes, float]] = {}

    async def run(self, port: int, rate_per_s: float, over: asyncio.Event) -> None:
        """Publish until `over`, reconnecting as needed; then wait for the last acknowledgements."""
        while not over.is_set() or self._unacknowledged:
            try:
                await self._session(port, rate_per_s, over)
            except (OSError, EOFError, asyncio.IncompleteReadError):
                if over.is_set():
                    return
                await asyncio.sleep(self._random.uniform(*RECONNECT_S))

    async def _session(self, port: int, rate_per_s: float, over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=self._tls, server_hostname="localhost"
        )
        client = self.name.encode()
        body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(client).to_bytes(2, "big") + client
        try:
            writer.write(bytes((0x10, len(body))) + body)
            if await reader.readexactly(4) != CONNACK_OK:
                raise ConnectionRefusedError  # `run` hears of every way to fail
            self._tally.connected += 1
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(reader))
                    await self._write(writer, rate_per_s, over)
                    raise _Finished  # noqa: TRY301  # ends the reader with the writer
            except* _Finished:
                pass
            except* (OSError, EOFError, asyncio.IncompleteReadError) as group:
                raise ConnectionResetError from group
            finally:
                self._tally.connected -= 1
        finally:
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, rate_per_s: float, over: asyncio.Event) -> None:
        for packet, _ in list(self._unacknowledged.values()):
            writer.write(bytes((packet[0] | 0x08,)) + packet[1:])  # DUP
        await asyncio.sleep(self._random.uniform(0, 1 / rate_per_s))
        while not over.is_set():
            self._seq += 1
            packet_id = self._seq % 65_535 + 1
            if packet_id not in self._unacknowledged:
                packet = self._packet(packet_id)
                self._unacknowledged[packet_id] = (packet, clock.monotonic_s())
                self._tally.sent += 1
                writer.write(packet)
                await writer.drain()
            await asyncio.sleep(self._random.uniform(0.5, 1.5) / rate_per_s)
        until_s = clock.monotonic_s() + 5.0
        while self._unacknowledged and clock.monotonic_s() < until_s:  # noqa: ASYNC110  # the end, bounded
            await asyncio.sleep(0.02)
        writer.write(b"\xe0\x00")

    def _packet(self, packet_id: int) -> bytes:
        payload = msgspec.json.encode(
            {
                "ts": clock.unix_ms(),
                "seq": self._seq,
                "metrics": {
                    "temperature": round(self._random.gauss(21, 2), 2),
                    "humidity": round(self._random.uniform(30, 60), 1),
                    "door": self._random.random() < 0.1,
                },
            }
        )
        body = len(self._topic).to_bytes(2, "big") + self._topic + packet_id.to_bytes(2, "big") + payload
        size = len(body)
        length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
        return b"\x32" + length + body

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            answer = await reader.readexactly(PUBACK_BYTES)
            entry = self._unacknowledged.pop(int.from_bytes(answer[2:], "big"), None)
            if entry is not None:
                self._tally.acknowledged += 1
                self._tally.latencies_s.append(clock.monotonic_s() - entry[1])


class _Finished(Exception):
    """Ends the reader of a session whose writer is done."""
