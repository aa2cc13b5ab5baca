from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage

from protocols.websocket import (
    BINARY,
    CLOSE,
    CONTROL_BYTES_MAX,
    PING,
    PONG,
    TEXT,
    Frames,
    encode,
    encode_close,
    may_be_sent,
    unmask,
)

MASK = b"\x37\xfa\x21\x3d"
LIMIT = 100_000


def masked(first: int, payload: bytes, mask: bytes = MASK) -> bytes:
    """Return a frame of a client with any first byte."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65_536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes((first,)) + length + mask + unmask(payload, mask)


def frames(limit: int = LIMIT) -> Frames:
    return Frames(limit, takes_text=True)


def code_of(data: bytes, limit: int = LIMIT) -> int:
    decoder = frames(limit)
    assert decoder.feed(data) == []
    assert decoder.attention
    assert decoder.failure is not None
    return decoder.failure[0]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 125, 126, 127, 65_535, 65_536, LIMIT])
def test_a_message_of_any_length_is_unmasked(size: int) -> None:
    payload = bytes(n * 7 % 256 for n in range(size))
    assert frames().feed(masked(0x82, payload)) == [payload]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_is_encoded_is_what_a_client_reads(size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(encode(BINARY, bytes(size)))
    assert b"".join(e.data for e in client.events() if isinstance(e, BytesMessage)) == bytes(size)


STREAM = b"".join([
    masked(0x82, b"one"),
    masked(0x01, "zwölf".encode()[:3]),
    masked(0x89, b"ping"),
    masked(0x00, "zwölf".encode()[3:4]),
    masked(0x8A, b"pong"),
    masked(0x80, "zwölf".encode()[4:]),
    masked(0x02, b"a" * 130),
    masked(0x80, b""),
    masked(0x82, b"b" * 65_536),
    masked(0x88, b"\x03\xe8bye"),
])  # fmt: skip
WHOLE = [b"one", "zwölf".encode(), b"a" * 130, b"b" * 65_536]


@pytest.mark.parametrize("cut", [*range(500), *range(65_700, len(STREAM))])
def test_a_stream_may_be_cut_anywhere(cut: int) -> None:
    decoder = frames()
    assert decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:]) == WHOLE
    assert (decoder.ping, decoder.closed, decoder.failure) == (b"ping", 1000, None)


def test_a_stream_may_come_byte_by_byte() -> None:
    decoder = frames()
    read = [message for at in range(len(STREAM)) for message in decoder.feed(STREAM[at : at + 1])]
    assert (read, decoder.closed) == (WHOLE, 1000)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01a", 1002),
        (masked(0xC2, b""), 1002),
        (masked(0xA2, b""), 1002),
        (masked(0x92, b""), 1002),
        *[(masked(0x80 | opcode, b""), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
        (masked(0x80, b"never began"), 1002),
        (masked(0x00, b"never began"), 1002),
        (masked(0x01, b"a") + masked(0x82, b"b"), 1002),
        (masked(0x02, b"a") + masked(0x01, b"b"), 1002),
        (masked(0x09, b"in fragments"), 1002),
        (masked(0x89, bytes(CONTROL_BYTES_MAX + 1)), 1002),
        (b"\x82\xfe\x00\x7d" + MASK + bytes(125), 1002),
        (b"\x82\xff" + (65_535).to_bytes(8, "big") + MASK, 1002),
        (b"\x82\xff" + (1 << 63).to_bytes(8, "big") + MASK, 1002),
        (masked(0x88, b"\x03"), 1002),
        *[
            (masked(0x88, code.to_bytes(2, "big")), 1002)
            for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
        ],
        (masked(0x88, b"\x03\xe8\xff"), 1007),
        (masked(0x81, b"\xff"), 1007),
        (masked(0x81, b"\xed\xa0\x80"), 1007),
        (masked(0x81, b"\xc0\x80"), 1007),
        (masked(0x81, b"\xf4\x90\x80\x80"), 1007),
        (masked(0x81, b"\xc3"), 1007),
        (masked(0x01, b"\xc3") + masked(0x80, b""), 1007),
        (masked(0x01, b"\xc3") + masked(0x00, b"\xc3"), 1007),
    ],
)
def test_what_breaks_the_protocol_is_refused_by_its_code(data: bytes, code: int) -> None:
    assert code_of(data) == code


def test_a_message_that_is_too_large_is_refused_by_its_header() -> None:
    assert frames(300).feed(masked(0x82, bytes(300))) == [bytes(300)]
    assert code_of(masked(0x82, bytes(301))[:8], 300) == 1009
    assert code_of(masked(0x02, bytes(200)) + masked(0x80, bytes(101))[:6], 300) == 1009
    assert code_of(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + MASK, 300) == 1009


def test_text_is_refused_where_messages_are_binary() -> None:
    decoder = Frames(LIMIT, takes_text=False)
    assert decoder.feed(masked(0x82, b"a") + masked(0x81, b"b") + masked(0x82, b"c")) == [b"a"]
    assert decoder.failure is not None
    assert decoder.failure[0] == 1003
    assert decoder.feed(masked(0x82, b"d")) == []


def test_nothing_is_taken_after_a_close() -> None:
    decoder = frames()
    assert decoder.feed(masked(0x88, b"") + masked(0x82, b"a")) == []
    assert decoder.closed == 1005
    assert decoder.feed(masked(0x82, b"a")) == []


def test_of_the_pings_of_a_read_the_last_is_to_be_answered() -> None:
    decoder = frames()
    assert decoder.feed(b"".join(masked(0x89, b"%d" % n) for n in range(1000))) == []
    assert (decoder.attention, decoder.ping) == (True, b"999")


def test_empty_fragments_leave_nothing() -> None:
    decoder = frames()
    assert decoder.feed(masked(0x02, b"") + masked(0x00, b"") * 1000 + masked(0x80, b"a")) == [b"a"]


def test_a_close_frame_holds_whole_characters_only() -> None:
    frame = encode_close(1008, "ö" * 100)
    assert frame[:4] == bytes((0x80 | CLOSE, 124, 0x03, 0xF0))
    assert frame[4:].decode() == "ö" * 61
    assert encode_close(1005, "is never sent") == bytes((0x80 | CLOSE, 0))


def test_the_codes_that_may_be_sent() -> None:
    sent = {code for code in range(6000) if may_be_sent(code)}
    assert sent == {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking_is_xor_byte_by_byte(data: bytes, mask: bytes) -> None:
    assert unmask(data, mask) == bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


FRAME = st.builds(
    masked,
    st.one_of(st.sampled_from([0x82, 0x81, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88]), st.integers(0, 255)),
    st.one_of(st.binary(max_size=140), st.text(max_size=60).map(str.encode), st.just(b"\x03\xe8")),
    st.binary(min_size=4, max_size=4),
)


def oracle(data: bytes) -> tuple[list[bytes], bytes | None, int | None]:
    """Return what wsproto makes of `data`: messages, the last ping, and the code with which it refuses."""
    server = Connection(ConnectionType.SERVER)
    messages: list[bytes] = []
    ping: bytes | None = None
    part = b""
    server.receive_data(data)
    for event in server.events():
        if isinstance(event, Message):
            part += event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            if event.message_finished:
                messages.append(part)
                part = b""
        elif isinstance(event, Ping):
            ping = bytes(event.payload)
        elif isinstance(event, CloseConnection):
            return messages, ping, event.code if server.state is ConnectionState.OPEN else None
    return messages, ping, None


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAME, max_size=8).map(b"".join), st.lists(st.integers(0, 1200), max_size=4))
def test_it_reads_what_wsproto_reads_and_refuses_what_it_refuses(data: bytes, cuts: list[int]) -> None:
    decoder = frames()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    read = [m for start, stop in itertools.pairwise(edges) for m in decoder.feed(data[start:stop])]
    messages, ping, refused = oracle(data)
    assert read == messages
    assert (decoder.ping, decoder.failure and decoder.failure[0]) == (ping, refused)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_are_read_or_refused_alike_however_they_are_cut(data: bytes, cut: int) -> None:
    whole, parts = frames(), frames()
    assert whole.feed(data) == parts.feed(data[:cut]) + parts.feed(data[cut:])
    assert (whole.failure, whole.closed, whole.ping) == (parts.failure, parts.closed, parts.ping)


def test_opcodes_are_those_of_the_rfc() -> None:
    assert (TEXT, BINARY, CLOSE, PING, PONG) == (0x1, 0x2, 0x8, 0x9, 0xA)
