"""A DNS server of one's own on a free port, over UDP and TCP, which can be made to fail as they do."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


class Mood(enum.Enum):
    """How it answers."""

    WELL = "well"
    SILENT = "silent"
    SERVFAIL = "servfail"
    TRUNCATED = "truncated"
    """Over UDP nothing but the wish to be asked over TCP."""
    OF_ANOTHER = "of_another"
    """With an id that nobody used, as who guesses would."""


class DnsServer(asyncio.DatagramProtocol):
    """Answers from `records`: texts by name and type. A name that is not there does not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.mood = Mood.WELL
        self.asked: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def address(self) -> str:
        """Where it is, as settings name it."""
        return f"127.0.0.1:{self.port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers go out by."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a question over UDP."""
        answer = self._answer(data, udp=True)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question over TCP."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = self._answer(await reader.readexactly(size), udp=False)
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        writer.close()

    def _answer(self, data: bytes, *, udp: bool) -> bytes | None:
        question = dns.message.from_wire(data)
        name, kind = question.question[0].name, question.question[0].rdtype
        text = name.to_text(omit_final_dot=True)
        self.asked.append(f"{text} {dns.rdatatype.to_text(kind)} {'udp' if udp else 'tcp'}")
        if self.mood is Mood.SILENT:
            return None
        answer = dns.message.make_response(question)
        if self.mood is Mood.SERVFAIL:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif self.mood is Mood.TRUNCATED and udp:
            answer.flags |= dns.flags.TC
        elif not any(known == text for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif texts := self.records.get((text, dns.rdatatype.to_text(kind))):
            answer.answer.append(dns.rrset.from_text_list(name, 5, "IN", kind, texts))
        if self.mood is Mood.OF_ANOTHER:
            answer.id ^= 1
        return answer.to_wire()


@contextlib.asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """Run one until the block ends."""
    server = DnsServer()
    over_tcp = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = over_tcp.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, ("127.0.0.1", server.port)
    )
    try:
        yield server
    finally:
        transport.close()
        over_tcp.close()
        await over_tcp.wait_closed()
