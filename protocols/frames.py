"""Our WebSocket frames on /v1/stream: the sub-protocols headworks.v1.json and headworks.v1.msgpack.

A client sends one frame or a list of frames a message, with ids of its choice; the server answers in
batches, once what it acknowledges is durable.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

SUBPROTOCOLS: Final = ("headworks.v1.json", "headworks.v1.msgpack")
FRAMES_MAX: Final = 10_000

FrameId = int | Annotated[str, msgspec.Meta(max_length=64)]


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One submission: telemetry, or a list of it, for a stream of this device (or of `device`)."""

    id: FrameId
    stream: Annotated[str, msgspec.Meta(max_length=512)]
    data: msgspec.Raw
    device: Annotated[str, msgspec.Meta(max_length=128)] | None = None


class Refused(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a frame was not taken."""

    id: FrameId
    reason: str
    detail: str
    retry_after_s: float = 0.0


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the server sends: ids that are durable, and ids that were refused."""

    ack: list[FrameId] = []
    refused: list[Refused] = []


class FrameError(Exception):
    """A message is not made of frames; the text says where, and never quotes it."""


_JSON_MANY: Final = msgspec.json.Decoder(list[Frame])
_JSON_ONE: Final = msgspec.json.Decoder(Frame)
_MSGPACK_MANY: Final = msgspec.msgpack.Decoder(list[Frame])
_MSGPACK_ONE: Final = msgspec.msgpack.Decoder(Frame)


def decode_frames(message: bytes, encoding: Literal["json", "msgpack"]) -> list[Frame]:
    """Return the frames of one message; raises `FrameError`."""
    try:
        if encoding == "json":
            many = message.lstrip()[:1] == b"["
            frames = _JSON_MANY.decode(message) if many else [_JSON_ONE.decode(message)]
        else:
            many = bool(message) and (0x90 <= message[0] <= 0x9F or message[0] in (0xDC, 0xDD))
            frames = _MSGPACK_MANY.decode(message) if many else [_MSGPACK_ONE.decode(message)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("not a frame: " + str(error)[:200]) from error
    if len(frames) > FRAMES_MAX:
        raise FrameError(f"a message has at most {FRAMES_MAX} frames")
    return frames


def encode_answer(answer: Answer, encoding: Literal["json", "msgpack"]) -> bytes:
    """Write an answer."""
    return msgspec.json.encode(answer) if encoding == "json" else msgspec.msgpack.encode(answer)
