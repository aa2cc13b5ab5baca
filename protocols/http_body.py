"""From an HTTP body to a payload: content type and content encoding, with a limit on what it inflates to.

JSON (object or list), NDJSON (which becomes a JSON list), MessagePack, and octets for raw streams; plain,
gzip, deflate or zstd.

Limits: `MEMBERS_MAX` gzip members or zstd frames, each of which costs a decompressor; `LINES_MAX` lines of
NDJSON; beside what it inflates to a body takes at most 8 MiB of memory (`_ZSTD_STEP`).
"""

from __future__ import annotations

import zlib
from typing import Final

import zstandard

JSON_TYPES: Final = frozenset({"application/json", "text/json", ""})
NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
MSGPACK_TYPES: Final = frozenset({"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"})
RAW_TYPES: Final = frozenset({"application/octet-stream"})
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_ZSTD_WINDOW_MAX: Final = 1 << 23
_STEP: Final = 65_536
_ZSTD_STEP: Final = 256
"""A zstd block of four bytes may stand for 128 KiB, so a piece of this size gives at most 8 MiB."""
MEMBERS_MAX: Final = 16
LINES_MAX: Final = 20_000
"""Twice as many as a message has records at most: lines may be blank."""


class BodyRefused(Exception):
    """The body cannot be taken: an HTTP status, a short name of the problem, and a text."""

    def __init__(self, status: int, slug: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.slug = slug
        self.text = text


class InflatesToMore(BodyRefused):
    """The body inflates to more than it may."""

    def __init__(self, inflated_bytes_max: int) -> None:
        super().__init__(413, "inflated-too-large", f"the body inflates to over {inflated_bytes_max} bytes")


def payload_of(content_type: str, content_encoding: str, body: bytes, *, inflated_bytes_max: int) -> bytes:
    """Return the payload of a body; raises `BodyRefused`."""
    body = inflate(content_encoding, body, inflated_bytes_max=inflated_bytes_max)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in NDJSON_TYPES:
        if body.count(b"\n") > LINES_MAX:
            raise BodyRefused(413, "too-many-lines", f"a body has at most {LINES_MAX} lines")
        return b"[" + b",".join(line for line in body.split(b"\n") if line.strip()) + b"]"
    if media_type not in JSON_TYPES | MSGPACK_TYPES | RAW_TYPES:
        raise BodyRefused(
            415,
            "unsupported-media-type",
            "send application/json, application/x-ndjson or application/msgpack",
        )
    return body


def inflate(content_encoding: str, body: bytes, *, inflated_bytes_max: int) -> bytes:
    """Undo a content encoding; raises `BodyRefused`."""
    match content_encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip" | "deflate":
            return _inflate_zlib(body, inflated_bytes_max)
        case "zstd":
            return _inflate_zstd(body, inflated_bytes_max)
    raise BodyRefused(415, "unsupported-content-encoding", "encode bodies with gzip, deflate or zstd")


def _inflate_zlib(body: bytes, inflated_bytes_max: int) -> bytes:
    """Inflate gzip (of one or more members) or zlib."""
    out = bytearray()
    position = 0
    with memoryview(body) as view:
        for _ in range(MEMBERS_MAX):
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            while not inflater.eof:
                piece = view[position : position + _STEP]
                if not piece:
                    raise BodyRefused(400, "truncated-body", "the compressed body ends early")
                try:
                    out += inflater.decompress(piece, inflated_bytes_max + 1 - len(out))
                except zlib.error as error:
                    raise _not_compressed() from error
                if len(out) > inflated_bytes_max:
                    raise InflatesToMore(inflated_bytes_max)
                position += len(piece) - len(inflater.unused_data)
            if position == len(body):
                return bytes(out)
    raise _too_many_members()


def _inflate_zstd(body: bytes, inflated_bytes_max: int) -> bytes:
    """Inflate zstd, of one or more frames; all that a piece gives comes at once, so pieces are small."""
    out = bytearray()
    position = 0
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    with memoryview(body) as view:
        for _ in range(MEMBERS_MAX):
            inflater = decompressor.decompressobj(read_across_frames=False)
            while not inflater.eof:
                piece = view[position : position + _ZSTD_STEP]
                if not piece:
                    raise BodyRefused(400, "truncated-body", "the compressed body ends early")
                try:
                    out += inflater.decompress(piece)
                except zstandard.ZstdError as error:
                    raise _not_compressed() from error
                if len(out) > inflated_bytes_max:
                    raise InflatesToMore(inflated_bytes_max)
                position += len(piece) - len(inflater.unused_data)
            if position == len(body):
                return bytes(out)
    raise _too_many_members()


def _not_compressed() -> BodyRefused:
    return BodyRefused(400, "bad-compression", "the body is not what its encoding says")


def _too_many_members() -> BodyRefused:
    return BodyRefused(400, "too-many-members", f"a compressed body has at most {MEMBERS_MAX} members")
