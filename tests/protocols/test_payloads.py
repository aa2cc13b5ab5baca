"""Telemetry, HTTP bodies and frames: taken, or refused by name, and never quoted."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.records import Encoding
from protocols.frames import FrameError, decode_frames
from protocols.http_body import LINES_MAX, MEMBERS_MAX, BodyRefused, inflate, payload_of
from protocols.telemetry import Form, Malformed, decode

GOOD: dict[str, Any] = {
    "ts": 1,
    "seq": 0,
    "metrics": {"a": 1, "b": 1.5, "c": True, "d": "x"},
    "location": [50.1, 8.7],
    "meta": {"fw": "1"},
}


def test_forms_have_the_numbers_of_encodings() -> None:
    assert {form.name: int(form) for form in Form}.items() <= {e.name: int(e) for e in Encoding}.items()


@pytest.mark.parametrize(
    ("payload", "form", "count"),
    [
        (json.dumps(GOOD).encode(), Form.JSON, 1),
        (b" \n" + json.dumps([GOOD, GOOD]).encode(), Form.JSON_LIST, 2),
        (msgspec.msgpack.encode(GOOD), Form.MSGPACK, 1),
        (msgspec.msgpack.encode([GOOD] * 20), Form.MSGPACK_LIST, 20),
    ],
)
def test_telemetry_is_taken_in_every_form(payload: bytes, form: Form, count: int) -> None:
    assert decode(payload, 100) == (form, count)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"   ",
        b"null",
        b'"text"',
        b"{",
        b"{}{}",
        b"[]",
        b"\xc1",
        b'{"ts":1,"metrics":{"a":"\xff"}}',
        json.dumps(without("ts")).encode(),
        json.dumps(without("metrics")).encode(),
        json.dumps({**GOOD, "secret-member": 1}).encode(),
        json.dumps({**GOOD, "ts": 0}).encode(),
        json.dumps({**GOOD, "ts": 1e300}).encode(),
        json.dumps({**GOOD, "seq": -1}).encode(),
        json.dumps({**GOOD, "metrics": {}}).encode(),
        json.dumps({**GOOD, "metrics": {"": 1}}).encode(),
        json.dumps({**GOOD, "metrics": {"a": None}}).encode(),
        json.dumps({**GOOD, "metrics": {"a": [1]}}).encode(),
        json.dumps({**GOOD, "metrics": {"a": "x" * 1025}}).encode(),
        json.dumps({**GOOD, "metrics": {str(n): 1 for n in range(257)}}).encode(),
        json.dumps({**GOOD, "location": [91, 0]}).encode(),
        json.dumps({**GOOD, "location": [0]}).encode(),
        json.dumps([GOOD, {}]).encode(),
        json.dumps([GOOD] * 101).encode(),
        msgspec.msgpack.encode({**GOOD, "metrics": {"a": float("nan")}}),
        msgspec.msgpack.encode([{**GOOD, "metrics": {"a": float("inf")}}]),
        msgspec.msgpack.encode([GOOD, {**GOOD, "metrics": {"a": True, "b": "x", "c": float("-inf")}}]),
        msgspec.msgpack.encode({**GOOD, "meta": {"a": None, "b": float("nan")}}),
        msgspec.msgpack.encode({**GOOD, "location": [float("nan"), 1.0]}),
        b"[" * 100_000,
    ],
    ids=lambda payload: repr(payload[:24]),
)
def test_what_is_not_telemetry_is_refused_without_being_quoted(payload: bytes) -> None:
    with pytest.raises(Malformed) as refused:
        decode(payload, 100)
    assert str(refused.value)
    assert "secret-member" not in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_telemetry_or_malformed(payload: bytes) -> None:
    try:
        decode(payload, 10)
    except Malformed:
        return


BODY = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("", BODY),
        ("gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("zstd", zstandard.compress(BODY)),
        ("zstd", zstandard.compress(BODY[:9]) + zstandard.compress(BODY[9:])),
    ],
)
def test_bodies_are_inflated(encoding: str, packed: bytes) -> None:
    assert inflate(encoding, packed, inflated_bytes_max=len(BODY)) == BODY


@pytest.mark.parametrize(
    ("encoding", "packed", "status"),
    [
        ("gzip", gzip.compress(bytes(10_000_000)), 413),
        ("zstd", zstandard.compress(bytes(10_000_000)), 413),
        ("gzip", gzip.compress(BODY)[:-5], 400),
        ("zstd", zstandard.compress(BODY)[:-3], 400),
        ("gzip", BODY, 400),
        ("zstd", BODY, 400),
        ("gzip", gzip.compress(BODY) + b"garbage", 400),
        ("br", BODY, 415),
    ],
)
def test_bombs_and_truncated_bodies_are_refused(encoding: str, packed: bytes, status: int) -> None:
    with pytest.raises(BodyRefused) as refused:
        inflate(encoding, packed, inflated_bytes_max=100_000)
    assert refused.value.status == status


def test_lines_become_a_list_and_other_types_are_refused() -> None:
    body = b'{"a":1}\n\n{"b":2}\r\n'
    listed = payload_of("application/x-ndjson; charset=utf-8", "", body, inflated_bytes_max=100)
    assert json.loads(listed) == [{"a": 1}, {"b": 2}]
    with pytest.raises(BodyRefused) as refused:
        payload_of("text/html", "", body, inflated_bytes_max=100)
    assert refused.value.status == 415


def test_frames_come_alone_or_in_lists() -> None:
    frame = {"id": "x", "stream": "s", "data": GOOD}
    assert decode_frames(json.dumps(frame).encode(), "json")[0].id == "x"
    assert len(decode_frames(json.dumps([frame, frame]).encode(), "json")) == 2
    assert len(decode_frames(msgspec.msgpack.encode([frame]), "msgpack")) == 1


@pytest.mark.parametrize("message", [b"", b"{}", b"[1]", b'{"id":1,"stream":"s","data":1,"more":2}', b"\xff"])
def test_what_is_no_frame_is_refused(message: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frames(message, "json")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.sampled_from(["json", "msgpack"]))
def test_any_bytes_are_frames_or_refused(message: bytes, encoding: Any) -> None:
    try:
        decode_frames(message, encoding)
    except FrameError:
        return


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_body_has_a_few_members_and_no_more(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    member = compress(b"x")
    assert inflate(encoding, member * MEMBERS_MAX, inflated_bytes_max=100) == b"x" * MEMBERS_MAX
    with pytest.raises(BodyRefused) as refused:
        inflate(encoding, member * (MEMBERS_MAX + 1), inflated_bytes_max=100)
    assert (refused.value.status, refused.value.slug) == (400, "too-many-members")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_members_are_found_wherever_a_piece_ends(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    chance = random.Random(1)
    parts = [chance.randbytes(size) for size in (65_500, 0, 255, 1, 70_000, 256)]
    body = b"".join(map(compress, parts))
    assert inflate(encoding, body, inflated_bytes_max=1 << 20) == b"".join(parts)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_takes_no_memory_before_it_is_refused(encoding: str) -> None:
    zeros = bytes(64 << 20)
    body = gzip.compress(zeros) if encoding == "gzip" else zstandard.compress(zeros)
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(BodyRefused) as refused:
            inflate(encoding, body, inflated_bytes_max=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.slug == "inflated-too-large"
    assert peak < 24 << 20


def test_a_body_has_so_many_lines_and_no_more() -> None:
    body = b"1\n" * LINES_MAX
    assert payload_of("application/x-ndjson", "", body, inflated_bytes_max=1 << 20).count(b"1") == LINES_MAX
    with pytest.raises(BodyRefused) as refused:
        payload_of("application/x-ndjson", "", body + b"\n", inflated_bytes_max=1 << 20)
    assert (refused.value.status, refused.value.slug) == (413, "too-many-lines")
