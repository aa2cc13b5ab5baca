"""A WebSocket device on /v1/stream: frames with the number of their last reading as id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from loadtests.clients.client import Answer, Gone
from loadtests.devices import Reading

SUBPROTOCOL: Final = "headworks.v1.json"
PATH: Final = "/v1/stream"
AGAIN: Final = frozenset({"draining", "disk_error", "spool_full"})


class _Refused(msgspec.Struct):
    id: int
    reason: str


class _Answer(msgspec.Struct):
    ack: list[int] = []
    refused: list[_Refused] = []


DECODER: Final = msgspec.json.Decoder(_Answer)


class WebSocketClient:
    """One device; `addressee` names it in each frame where its credential does not."""

    __slots__ = (
        "_addressee",
        "_connection",
        "_host",
        "_list_size",
        "_owed",
        "_replies",
        "_stream",
        "_text",
        "ready",
    )

    def __init__(self, host: str, stream: str, addressee: str | None, *, list_size: int) -> None:
        self.ready = False
        self._host = host
        self._stream = stream
        self._addressee = addressee
        self._list_size = list_size
        self._connection: WSConnection | None = None
        self._owed: dict[int, tuple[int, ...]] = {}
        self._text: list[str] = []
        self._replies = b""

    def open(self) -> bytes:
        """Begin on a new connection."""
        self.ready = False
        self._owed.clear()
        self._text.clear()
        self._replies = b""
        self._connection = WSConnection(ConnectionType.CLIENT)
        return self._connection.send(Request(host=self._host, target=PATH, subprotocols=[SUBPROTOCOL]))

    def next_count(self) -> int:
        """Return the size of a list."""
        return self._list_size

    def publish(self, readings: Sequence[Reading], payload: bytes) -> bytes:
        """Return a message of one frame."""
        assert self._connection is not None
        seqs = tuple(seq for seq, _ in readings)
        self._owed[seqs[-1]] = seqs
        device = f',"device":"{self._addressee}"' if self._addressee is not None else ""
        frame = f'{{"id":{seqs[-1]},"stream":"{self._stream}"{device},"data":{payload.decode()}}}'
        return self._connection.send(TextMessage(data=frame))

    def hear(self, data: bytes) -> list[Answer]:
        """Return the answers in what came; raises `Gone`."""
        assert self._connection is not None
        answers: list[Answer] = []
        try:
            self._connection.receive_data(data or None)
            for event in self._connection.events():
                if isinstance(event, TextMessage):
                    self._text.append(event.data)
                    if event.message_finished:
                        answers += self._answers("".join(self._text))
                        self._text.clear()
                elif isinstance(event, AcceptConnection):
                    self.ready = True
                elif isinstance(event, Ping):
                    self._replies += self._connection.send(event.response())
                elif isinstance(event, CloseConnection):
                    raise Gone(f"close {event.code}")
                elif isinstance(event, RejectConnection):
                    raise Gone(f"no upgrade: {event.status_code}")
        except ProtocolError as error:
            raise Gone("not a WebSocket") from error
        return answers

    def _answers(self, text: str) -> list[Answer]:
        try:
            said = DECODER.decode(text)
        except msgspec.DecodeError as error:
            raise Gone("an answer that cannot be read") from error
        try:
            answers = [Answer(self._owed.pop(number)) for number in said.ack]
            for refused in said.refused:
                if refused.reason in AGAIN:
                    raise Gone(refused.reason)
                answers.append(Answer(self._owed.pop(refused.id), refused.reason))
        except KeyError as error:
            raise Gone("an answer to what was not asked") from error
        return answers

    def reply(self) -> bytes:
        """Return what is to be said because of what was heard: pongs."""
        replies, self._replies = self._replies, b""
        return replies

    def ping(self) -> bytes:
        """Return a ping."""
        assert self._connection is not None
        return self._connection.send(Ping())

    def close(self) -> bytes:
        """Return a close frame."""
        assert self._connection is not None
        return self._connection.send(CloseConnection(code=1000))
