"""Our WebSocket frames: what a client sends, and the answer to it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from bench import corpus
from protocols.frames import Answer, decode_frames, encode_answer
from protocols.websocket import Frames, unmask

Form = Literal["json", "msgpack"]
FORMS = pytest.mark.parametrize("form", ["json", "msgpack"])
FRAMES = pytest.mark.parametrize("frames", [1, 100])


@FORMS
@FRAMES
def test_decode_frames(benchmark: Any, form: Form, frames: int) -> None:
    sent = [
        {"id": number, "stream": corpus.STREAM, "data": data}
        for number, data in enumerate(corpus.measurements(frames))
    ]
    encode = msgspec.json.encode if form == "json" else msgspec.msgpack.encode
    message = encode(sent if frames > 1 else sent[0])
    assert len(benchmark(decode_frames, message, form)) == frames


@FORMS
@FRAMES
def test_encode_answer(benchmark: Any, form: Form, frames: int) -> None:
    assert benchmark(encode_answer, Answer(list(range(frames))), form)


@pytest.mark.parametrize("frames", [1, 64])
def test_feed(benchmark: Any, frames: int) -> None:
    """The frames of one read, a message of 100 bytes each; what is in them is not in the measurement."""
    mask = bytes.fromhex("37fa213d")
    frame = b"\x82" + bytes((0x80 | 100,)) + mask + unmask(bytes(range(100)), mask)
    decoder = Frames(1 << 20, takes_text=False)
    assert len(benchmark(decoder.feed, frame * frames)) == frames
