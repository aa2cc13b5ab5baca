"""From an HTTP body to a payload: content type and content encoding, with a limit on what it inflates to.

JSON (object or list), NDJSON (which becomes a JSON list), MessagePack, and octets for raw streams; plain,
gzip, deflate or zstd.
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


class BodyRefused(Exception):
    """The body cannot be taken: an HTTP status, a short name of the problem, and a text."""

    def __init__(self, status: int, slug: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.slug = slug
        self.text = text


def payload_of(content_type: str, content_encoding: str, body: bytes, *, inflated_bytes_max: int) -> bytes:
    """Return the payload of a body; raises `BodyRefused`."""
    body = inflate(content_encoding, body, inflated_bytes_max=inflated_bytes_max)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in NDJSON_TYPES:
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


def _bomb(inflated_bytes_max: int) -> BodyRefused:
    return BodyRefused(413, "inflated-too-large", f"the body inflates to over {inflated_bytes_max} bytes")


def _inflate_zlib(body: bytes, inflated_bytes_max: int) -> bytes:
    """Inflate gzip (of one or more members) or zlib."""
    out = bytearray()
    while body:
        inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            out += inflater.decompress(body, inflated_bytes_max + 1 - len(out))
        except zlib.error as error:
            raise BodyRefused(400, "bad-compression", "the body is not what its encoding says") from error
        if len(out) > inflated_bytes_max:
            raise _bomb(inflated_bytes_max)
        if not inflater.eof:
            raise BodyRefused(400, "truncated-body", "the compressed body ends early")
        body = inflater.unused_data
    return bytes(out)


def _inflate_zstd(body: bytes, inflated_bytes_max: int) -> bytes:
    out = bytearray()
    rest = body
    try:
        while rest:
            inflater = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj(
                write_size=_STEP, read_across_frames=False
            )
            for start in range(0, len(rest), _STEP):
                out += inflater.decompress(rest[start : start + _STEP])
                if len(out) > inflated_bytes_max:
                    raise _bomb(inflated_bytes_max)
                if inflater.eof:
                    rest = inflater.unused_data + rest[start + _STEP :]
                    break
            else:
                raise BodyRefused(400, "truncated-body", "the compressed body ends early")
    except zstandard.ZstdError as error:
        raise BodyRefused(400, "bad-compression", "the body is not what its encoding says") from error
    return bytes(out)
