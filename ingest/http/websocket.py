"""Our frames over WebSocket on /v1/stream: ids of the client's choice, acknowledged in batches.

One answer goes out a group commit. A client may be owed `websocket_unacknowledged_max` answers, with those
that it has not read; beyond that, and while it is over a limit, nothing more is read. The frames of one
message go beyond it (`FRAMES_MAX`). A client that does not read is cut off by the deadline of its connection,
and one that answers no ping, unless it is we who do not read it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Literal

from aiohttp import WSMsgType, web

from ingest.counters import Closing, Protocol
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
from routing.tenancy.identity import Kind
from runtime import clock

if TYPE_CHECKING:
    from ingest.http.listener import Handler

PONG_SHARE: Final = 0.5
"""So much of a ping interval a client has to answer."""


class StreamSocket:
    """One open WebSocket with what it is owed."""

    def __init__(self, handler: Handler, producer: Producer, socket: web.WebSocketResponse) -> None:
        self._handler = handler
        self._listener = handler.listener
        self.producer = producer
        self._socket = socket
        self._encoding: Literal["json", "msgpack"] = (
            "msgpack" if socket.ws_protocol == SUBPROTOCOLS[1] else "json"
        )
        self._owed_max = handler.listener.settings.websocket_unacknowledged_max
        self._ack: list[FrameId] = []
        self._refused: list[Refused] = []
        self._open_frames = 0
        self._unread = 0
        self._held_up = False
        self._close: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self._told = asyncio.Event()
        self._gone = asyncio.Event()

    def gone(self) -> None:
        """Hear that the connection is lost."""
        self._gone.set()
        self._told.set()

    def close(self, code: int, text: str, closing: Closing) -> None:
        """Close once what is owed is sent, or at the deadline of a request."""
        if self._close is None:
            self._close = (code, text)
            self._handler.closing = closing
            self._wake.set()
            deadline_s = self._listener.settings.request_deadline_s
            asyncio.get_running_loop().call_later(deadline_s, self._handler.abort, closing)

    @property
    def owed(self) -> int:
        """Return how many answers the client has not been given, or has not read."""
        return self._open_frames + len(self._ack) + len(self._refused) + self._unread

    async def may_go_on(self, pause_s: float) -> bool:
        """Wait until the client may send more; False when it is gone."""
        if not pause_s and self.owed < self._owed_max:
            return not self._gone.is_set()
        self._held_up = True
        if pause_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._gone.wait()
        while self.owed >= self._owed_max and not self._gone.is_set():
            self._told.clear()
            await self._told.wait()
        self._held_up = False
        self._handler.heard_s = clock.monotonic_s()
        return not self._gone.is_set()

    def take(self, message: bytes) -> float:
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
        self._wake.set()

    def refuse(self, frame: FrameId, outcome: Outcome, detail: str, retry_after_s: float = 0.0) -> None:
        """Owe a refusal."""
        self._refused.append(Refused(frame, outcome.name.lower(), detail, retry_after_s))
        self._wake.set()

    def withdraw(self, frame: FrameId) -> None:
        """Refuse a frame that the disk did not take."""
        self._open_frames -= 1
        self.refuse(frame, Outcome.DISK_ERROR, DETAIL[Outcome.DISK_ERROR])

    async def pump(self) -> None:
        """Send what is owed, one message a batch, until the socket is closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            ack, self._ack = self._ack, []
            refused, self._refused = self._refused, []
            self._unread = len(ack) + len(refused)
            try:
                if self._unread:
                    answer = encode_answer(Answer(ack, refused), self._encoding)
                    if self._encoding == "json":
                        await self._socket.send_str(answer.decode())
                    else:
                        await self._socket.send_bytes(answer)
                    self._unread = 0
                    self._told.set()
                if self._close is not None and not self._open_frames:
                    code, text = self._close
                    await self._socket.close(code=code, message=text.encode()[:120])
                    return
            except ConnectionError:
                self.gone()
                return

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
            try:
                await self._socket.ping()
            except ConnectionError:
                return
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
    listener, settings = handler.listener, handler.listener.settings
    response = web.WebSocketResponse(
        protocols=SUBPROTOCOLS,
        max_msg_size=settings.websocket_message_bytes_max,
        timeout=2.0,
        compress=False,
    )
    await response.prepare(request)
    socket = StreamSocket(handler, producer, response)
    listener.websockets.add(socket)
    handler.turn_into(Protocol.WEBSOCKET, socket.gone)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(part) for part in (socket.pump(), socket.watch(settings.websocket_ping_s))
            ]
            async for message in response:
                if message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                    break
                try:
                    data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
                    pause_s = socket.take(data)
                except FrameError as error:
                    listener.events.protocol_error(Protocol.WEBSOCKET, str(error), str(request.remote))
                    socket.close(1007, str(error), Closing.PROTOCOL_ERROR)
                    continue
                if not await socket.may_go_on(pause_s):
                    break
            for task in running:
                task.cancel()
    finally:
        listener.websockets.discard(socket)
    return response
