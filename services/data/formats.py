"""How long answers are written: JSON in pages, or all at once as NDJSON or as an Arrow stream."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec
import nanoarrow
from nanoarrow.ipc import StreamWriter

from services.web.refusal import Refused

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
ARROW: Final = "application/vnd.apache.arrow.stream"


class Format(enum.Enum):
    """What an answer is written in."""

    JSON = JSON
    NDJSON = NDJSON
    ARROW = ARROW


def wanted(accept: str) -> Format:
    """Return the format that an Accept header (RFC 9110, 12.5.1) likes best; raises `Refused`."""
    best, best_quality = None, 0.0
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        offered = _offered(media_type)
        quality = _quality(parameters)
        if offered is not None and quality > best_quality:
            best, best_quality = offered, quality
    if best is None:
        raise Refused(406, "not-acceptable", f"Accept one of {JSON}, {NDJSON}, {ARROW}")
    return best


def _offered(media_type: str) -> Format | None:
    if media_type in {"*/*", "application/*"} or (
        media_type.startswith("application/vnd.headworks.") and media_type.endswith("+json")
    ):
        return Format.JSON
    return next((each for each in Format if each.value == media_type), None)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def ndjson(items: list[Any]) -> bytes:
    """Return a line for each item."""
    return msgspec.json.Encoder().encode_lines(items)


class ArrowWriter:
    """Writes one Arrow IPC stream, a batch at a time, into `take`."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._writer = StreamWriter.from_writable(self)

    def write(self, data: Any) -> int:
        """Take bytes of the stream; nanoarrow calls this."""
        self._bytes += data
        return len(data)

    def add(self, stream: Any) -> tuple[int, tuple[Any, ...] | None]:
        """Write all batches of a C stream; return how many rows it had, and the last of them."""
        array = nanoarrow.ArrayStream(stream).read_all()
        self._writer.write_stream(array)
        return len(array), tuple(array[-1].as_py().values()) if len(array) else None

    def take(self) -> bytes:
        """Return what was written since the last time."""
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken

    def close(self) -> bytes:
        """Return the end of the stream."""
        self._writer.close()
        return self.take()
