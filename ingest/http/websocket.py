"""Our frames over WebSocket on /v1/stream: ids of the client's choice, acknowledged in batches.

One answer goes out a group commit. A client may have `websocket_unacknowledged_max` frames open; beyond
that, and while it is over a limit or the spool has no room, nothing more is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from aiohttp import WSMsgType, web

from ingest import clock
from ingest.counters import Protocol
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

if TYPE_CHECKING:
    from ingest.http.listener import HttpListener


class StreamSocket:
    """One open WebSocket with what it is owed."""

    def __init__(self, listener: HttpListener, producer: Producer, socket: web.WebSocketResponse) -> None:
        self._listener = listener
        self.producer = producer
        self._socket = socket
        self._encoding: Literal["json", "msgpack"] = (
            "msgpack" if socket.ws_protocol == SUBPROTOCOLS[1] else "json"
        )
        self._ack: list[FrameId] = []
        self._refused: list[Refused] = []
        self.open_frames = 0
        self._close: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self.answered = asyncio.Event()
        self.answered.set()

    def close(self, code: int, text: str) -> None:
        """Close once what is owed is sent."""
        if self._close is None:
            self._close = (code, text)
            self._wake.set()

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
            waiter=waiter,
        )
        if submission.outcome is Outcome.ACCEPTED:
            self.open_frames += 1
            self._listener.spool.answer(waiter, b"ack")
            return submission.retry_after_s
        detail = DETAIL[submission.outcome] + (f": {submission.detail}" if submission.detail else "")
        self.refuse(frame.id, submission.outcome, detail, submission.retry_after_s)
        return 0.0

    def acknowledge(self, frame: FrameId) -> None:
        """Owe the acknowledgement of a durable frame."""
        self.open_frames -= 1
        self._ack.append(frame)
        self.answered.set()
        self._wake.set()

    def refuse(self, frame: FrameId, outcome: Outcome, detail: str, retry_after_s: float = 0.0) -> None:
        """Owe a refusal."""
        self._refused.append(Refused(frame, outcome.name.lower(), detail, retry_after_s))
        self._wake.set()

    def withdraw(self, frame: FrameId) -> None:
        """Refuse a frame that the disk did not take."""
        self.open_frames -= 1
        self.answered.set()
        self.refuse(frame, Outcome.DISK_ERROR, DETAIL[Outcome.DISK_ERROR])

    async def pump(self) -> None:
        """Send what is owed, one message a batch, until the socket is closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            ack, self._ack = self._ack, []
            refused, self._refused = self._refused, []
            try:
                if ack or refused:
                    answer = encode_answer(Answer(ack, refused), self._encoding)
                    if self._encoding == "json":
                        await self._socket.send_str(answer.decode())
                    else:
                        await self._socket.send_bytes(answer)
                if self._close is not None and not self.open_frames:
                    code, text = self._close
                    await self._socket.close(code=code, message=text.encode()[:120])
                    return
            except ConnectionError:
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


async def serve(
    request: web.BaseRequest, listener: HttpListener, producer: Producer
) -> web.WebSocketResponse:
    """Serve one WebSocket until either side closes it."""
    settings = listener.settings
    response = web.WebSocketResponse(
        protocols=SUBPROTOCOLS,
        heartbeat=settings.websocket_ping_s,
        max_msg_size=settings.websocket_message_bytes_max,
        timeout=2.0,
        compress=False,
    )
    await response.prepare(request)
    socket = StreamSocket(listener, producer, response)
    listener.websockets.add(socket)
    listener.events.connection_opened(Protocol.WEBSOCKET)
    try:
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(socket.pump())
            async for message in response:
                if message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                    break
                try:
                    data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
                    pause_s = socket.take(data)
                except FrameError as error:
                    listener.events.protocol_error(Protocol.WEBSOCKET, str(error), str(request.remote))
                    socket.close(1007, str(error))
                    continue
                if pause_s:
                    await asyncio.sleep(pause_s)
                while socket.open_frames >= settings.websocket_unacknowledged_max:
                    socket.answered.clear()
                    await socket.answered.wait()
            pump.cancel()
    finally:
        listener.websockets.discard(socket)
    return response
