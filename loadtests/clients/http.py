"""An HTTP device: a POST at a time on a kept connection, one reading or a list, with an `Idempotency-Key`.

What was not answered is asked again with the same body and the same key, so that it can be there only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import h11
import msgspec

from loadtests.clients.client import Answer, Gone
from loadtests.devices import Reading

ACCEPTED: Final = 202
ASK_AGAIN: Final = frozenset({408, 409, 503})


class _Problem(msgspec.Struct):
    """An error as `application/problem+json`."""

    type: str = ""


class HttpClient:
    """One device; `path` is where it posts, `list_size` how many readings at a time."""

    __slots__ = (
        "_body",
        "_connection",
        "_headers",
        "_list_size",
        "_name",
        "_owed",
        "_path",
        "_status",
        "ready",
    )

    def __init__(self, name: str, path: str, host: str, *, list_size: int) -> None:
        self.ready = False
        self._name = name
        self._path = path
        self._headers = [("host", host), ("content-type", "application/json")]
        self._list_size = list_size
        self._connection: h11.Connection | None = None
        self._owed: tuple[int, ...] = ()
        self._status = 0
        self._body = b""

    def open(self) -> bytes:
        """Begin on a new connection: nothing need be said."""
        self._connection = h11.Connection(h11.CLIENT)
        self._status = 0
        self.ready = True
        return b""

    def next_count(self) -> int:
        """Return what an unanswered message had, else the size of a list; 0 while an answer is owed."""
        if self._connection is None or self._connection.our_state is not h11.IDLE:
            return 0
        return len(self._owed) or self._list_size

    def publish(self, readings: Sequence[Reading], payload: bytes) -> bytes:
        """Return a POST."""
        assert self._connection is not None
        self._owed = tuple(seq for seq, _ in readings)
        key = f"{self._name}-{self._owed[0]}-{self._owed[-1]}"
        request = h11.Request(
            method="POST",
            target=self._path,
            headers=[*self._headers, ("content-length", str(len(payload))), ("idempotency-key", key)],
        )
        parts = (request, h11.Data(data=payload), h11.EndOfMessage())
        return b"".join(self._connection.send(part) or b"" for part in parts)

    def hear(self, data: bytes) -> list[Answer]:
        """Return the answer in what came; raises `Gone`."""
        connection = self._connection
        assert connection is not None
        answers: list[Answer] = []
        try:
            connection.receive_data(data)
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    self._status, self._body = event.status_code, b""
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    answers.append(self._answer())
                    if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
                        break
                    connection.start_next_cycle()
                else:
                    break
        except h11.RemoteProtocolError as error:
            raise Gone("not HTTP") from error
        if not answers and connection.their_state in {h11.CLOSED, h11.MUST_CLOSE, h11.ERROR}:
            raise Gone("closed by the server")
        return answers

    def _answer(self) -> Answer:
        if self._status in ASK_AGAIN or not self._owed:
            raise Gone(f"{self._status} {self._reason()}")
        owed, self._owed = self._owed, ()
        return Answer(owed, "" if self._status == ACCEPTED else self._reason())

    def _reason(self) -> str:
        try:
            slug = msgspec.json.decode(self._body, type=_Problem).type
        except msgspec.DecodeError:
            return str(self._status)
        return slug.rpartition(":")[2].replace("-", "_") or str(self._status)

    def reply(self) -> bytes:
        """Return nothing."""
        return b""

    def ping(self) -> bytes:
        """Return nothing: a server that has closed a silent connection is asked on a new one."""
        return b""

    def close(self) -> bytes:
        """Return nothing."""
        return b""
