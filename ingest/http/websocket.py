"""Our frames over WebSocket on /v1/stream: ids of the client's choice, acknowledged in batches.

One answer goes out a group commit. A client may be owed `websocket_unacknowledged_max` answers, with those
that it does not read; beyond that, and while it is over a limit, nothing more is taken: the messages of one
read wait, and the frames of one message go beyond it (`FRAMES_MAX`). A client that does not read is cut off
by the deadline of its connection, and one that answers no ping, unless it is we who do not read it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from aiohttp import web

from ingest.counters import Closing, Protocol
from ingest.http.open_socket import OpenSocket, Upgrade
from ingest.outcome import DETAIL, Outcome
from ingest.pipeline import Producer
from ingest.spool.store import SpoolError
from protocols.frames import (
    SUBPROTOCOLS,
    Answer,
    Frame,
    FrameError,
    FrameId,
    Refused,
    decode_frames,
    encode_answer,
)
from protocols.websocket import BINARY, INVALID, PING, TEXT
from routing.tenancy.identity import Kind
from runtime import clock

if TYPE_CHECKING:
    from ingest.http.handler import Handler

PONG_SHARE: Final = 0.5
"""So much of a ping interval a client has to answer."""


class StreamSocket(OpenSocket):
    """One open WebSocket with what it is owed."""

    def __init__(self, handler: Handler, producer: Producer, protocol: str | None) -> None:
        super().__init__(handler, Protocol.WEBSOCKET, takes_text=True)
        self._listener = handler.listener
        self.producer = producer
        self._encoding: Literal["json", "msgpack"] = "msgpack" if protocol == SUBPROTOCOLS[1] else "json"
        self._opcode = TEXT if self._encoding == "json" else BINARY
        self._owed_max = handler.listener.settings.websocket_unacknowledged_max
        self._messages: deque[bytes] = deque()
        self._ack: list[FrameId] = []
        self._refused: list[Refused] = []
        self._open_frames = 0
        self._pausing = False
        self._held_up = False
        self._unwritable = False
        self._answering = False
        self._close: tuple[int, str] | None = None

    def close(self, code: int, text: str, closing: Closing) -> None:
        """Close once what is owed is sent, or at the deadline of a request."""
        if self._close is None:
            self._close = (code, text)
            self._handler.closing = closing
            self._answer_soon()
            deadline_s = self._listener.settings.request_deadline_s
            self._loop.call_later(deadline_s, self._handler.abort, closing)

    @property
    def owed(self) -> int:
        """Return how many answers the client has not been sent."""
        return self._open_frames + len(self._ack) + len(self._refused)

    def take(self, messages: list[bytes]) -> None:
        """Submit the frames of the messages, as far as the client may go on."""
        self._messages.extend(messages)
        self._go_through()

    def _go_through(self) -> None:
        while self._messages and self._close is None and not self._pausing and self.owed < self._owed_max:
            try:
                pause_s = self._take_message(self._messages.popleft())
            except FrameError as error:
                peer = self._handler.peer
                address = peer.address if peer is not None else "?"
                self._listener.events.protocol_error(Protocol.WEBSOCKET, str(error), address)
                self.close(INVALID, str(error), Closing.PROTOCOL_ERROR)
                break
            if pause_s:
                self._pausing = True
                self._loop.call_later(pause_s, self._pause_is_over)
        if self._close is not None:
            self._messages.clear()
        held_up = self._close is None and (self._pausing or self.owed >= self._owed_max)
        if held_up and not self._held_up:
            self.pause_reading()
        elif self._held_up and not held_up:
            self._handler.heard_s = clock.monotonic_s()
            self.resume_reading()
        self._held_up = held_up

    def _pause_is_over(self) -> None:
        self._pausing = False
        if not self.over.is_set():
            self._go_through()

    def _take_message(self, message: bytes) -> float:
        """Submit the frames of one message; return how long to pause. Raises `FrameError`."""
        pause_s = 0.0
        for frame in decode_frames(message, self._encoding):
            pause_s = max(pause_s, self._take_frame(frame))
        return pause_s

    def _take_frame(self, frame: Frame) -> float:
        identity = self.producer.identity
        device = frame.device if frame.device is not None else identity.name
        tenant = identity.tenant
        if identity.kind is Kind.ANYONE and device.count("/") == 1:
            tenant, device = device.split("/")
        waiter = _FrameWaiter(self, frame.id)
        submission = self._listener.pipeline.submit(
            self.producer,
            (tenant, device, frame.stream),
            bytes(frame.data),
            clock.monotonic_s(),
            can_pause=True,
            waiter=waiter,
        )
        if submission.outcome is Outcome.ACCEPTED:
            self._open_frames += 1
            self._listener.spool.answer(waiter, b"ack")
            return submission.pause_s
        detail = DETAIL[submission.outcome] + (f": {submission.detail}" if submission.detail else "")
        self.refuse(frame.id, submission.outcome, detail, submission.retry_after_s)
        return submission.pause_s

    def acknowledge(self, frame: FrameId) -> None:
        """Owe the acknowledgement of a durable frame."""
        self._open_frames -= 1
        self._ack.append(frame)
        self._answer_soon()

    def refuse(self, frame: FrameId, outcome: Outcome, detail: str, retry_after_s: float = 0.0) -> None:
        """Owe a refusal."""
        self._refused.append(Refused(frame, outcome.name.lower(), detail, retry_after_s))
        self._answer_soon()

    def withdraw(self, frame: FrameId) -> None:
        """Refuse a frame that the disk did not take."""
        self._open_frames -= 1
        self.refuse(frame, Outcome.DISK_ERROR, DETAIL[Outcome.DISK_ERROR])

    def pause_writing(self) -> None:
        """Keep what is owed until the peer takes what it was sent."""
        self._unwritable = True

    def resume_writing(self) -> None:
        """Send what is owed."""
        self._unwritable = False
        self._answer_soon()

    def _answer_soon(self) -> None:
        """Answer in the next turn of the loop: once for all that this one says."""
        if not self._answering:
            self._answering = True
            self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        """Send what is owed, as one message."""
        self._answering = False
        if self._unwritable or self.over.is_set():
            return
        if self._ack or self._refused:
            ack, self._ack = self._ack, []
            refused, self._refused = self._refused, []
            self.send(self._opcode, encode_answer(Answer(ack, refused), self._encoding))
        if self._close is not None and not self._open_frames:
            self.say_goodbye(*self._close)
        else:
            self._go_through()

    async def watch(self, ping_s: float) -> None:
        """Ping a client that is silent, and cut it off when it stays so.

        While we do not read it, its answer is behind what it has sent: then a ping only finds out whether
        the network still carries it.
        """
        while True:
            silent_s = clock.monotonic_s() - self._handler.heard_s
            if silent_s < ping_s:
                await asyncio.sleep(ping_s - silent_s)
                continue
            asked_s = clock.monotonic_s()
            self.send(PING, b"")
            await asyncio.sleep(PONG_SHARE * ping_s)
            if self._handler.heard_s < asked_s and not self._held_up:
                self._handler.abort(Closing.LOST)
                return


class _FrameWaiter:
    """Waits for the fsync of one frame."""

    __slots__ = ("_frame", "_socket")

    def __init__(self, socket: StreamSocket, frame: FrameId) -> None:
        self._socket = socket
        self._frame = frame

    def durable(self, reply: bytes) -> None:
        """Acknowledge it."""
        del reply
        self._socket.acknowledge(self._frame)

    def lost(self, error: SpoolError) -> bool:
        """Withdraw it."""
        del error
        self._socket.withdraw(self._frame)
        return True


async def serve(request: web.BaseRequest, handler: Handler, producer: Producer) -> web.WebSocketResponse:
    """Serve one WebSocket until either side closes it."""
    listener = handler.listener
    response = Upgrade(protocols=SUBPROTOCOLS, compress=False)
    await response.prepare(request)
    socket = StreamSocket(handler, producer, response.ws_protocol)
    listener.websockets.add(socket)
    handler.turn_into(Protocol.WEBSOCKET, socket)
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(socket.watch(listener.settings.websocket_ping_s))
            await socket.over.wait()
            watching.cancel()
    finally:
        listener.websockets.discard(socket)
    return response
