"""WebSocket frames of a server (RFC 6455): all complete messages of a read at once, and what is to be sent.

No extension is spoken, so that every reserved bit is refused. Of the pings of one read only the last is to be
answered (RFC 6455, 5.5.3), so that a flood of them asks for one answer a read.

Limits: `message_bytes_max` for a message, whole or in fragments, judged by the header of a frame before any
of it is kept; what is kept between reads is at most that and the header of a frame.
"""

from __future__ import annotations

import codecs
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED: Final = 1003
NO_CODE: Final = 1005
INVALID: Final = 1007
TOO_LARGE: Final = 1009

CONTROL_BYTES_MAX: Final = 125
_OPCODE_MAX: Final = PONG
_MASK_BYTES: Final = 4


def encode(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame of a server, which is not masked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126, size >> 8, size & 0xFF)) + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def encode_close(code: int, text: str) -> bytes:
    """Return a close frame; of the text as many whole characters as a control frame holds."""
    if code == NO_CODE:
        return encode(CLOSE, b"")
    said = text.encode()[: CONTROL_BYTES_MAX - 2].decode(errors="ignore").encode()
    return encode(CLOSE, code.to_bytes(2, "big") + said)


def unmask(data: bytes, mask: bytes) -> bytes:
    """Return `data` unmasked by four bytes of `mask` (RFC 6455, 5.3); done twice it is what it was."""
    size = len(data)
    key = mask * ((size + 3) >> 2)
    masked = int.from_bytes(data, "little") ^ int.from_bytes(key[:size], "little")
    return masked.to_bytes(size, "little")


def may_be_sent(code: int) -> bool:
    """Return whether a close frame may carry `code` (RFC 6455, 7.4, and the registry of IANA)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class Frames:
    """What a client sends on one connection.

    After a read, `ping` is what is to be answered with a pong, `closed` the code with which the peer closes,
    and `failure` the code and text with which it is to be closed; after either, nothing more is taken.
    """

    def __init__(self, message_bytes_max: int, *, takes_text: bool) -> None:
        self._bytes_max = message_bytes_max
        self._takes_text = takes_text
        self._rest = bytearray()
        self._needed = 0
        self._opcode = 0
        self._message = bytearray()
        self._text: codecs.IncrementalDecoder | None = None
        self.attention = False
        self.ping: bytes | None = None
        self.closed: int | None = None
        self.failure: tuple[int, str] | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes; `attention` says to look at the other attributes.

        Hot: guarded by bench/test_frames.py::test_feed.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        messages: list[bytes] = []
        if self._is_over():
            return messages
        end = len(data)
        at = 0
        while end - at >= 2:
            first = data[at]
            size = data[at + 1]
            if size < 0x80:
                self._fail(PROTOCOL_ERROR, "a client masks its frames")
                return messages
            size &= 0x7F
            start = at + 6
            if size >= 126:
                start = at + (8 if size == 126 else 14)
                if end - at < start - at - _MASK_BYTES:
                    self._needed = start - at
                    break
                shortest = 126 if size == 126 else 65_536
                size = int.from_bytes(data[at + 2 : start - _MASK_BYTES], "big")
                if size < shortest or size >> 63:
                    self._fail(PROTOCOL_ERROR, "the length of a frame is not in its shortest form")
                    return messages
            if not self._allows(first, size):
                return messages
            stop = start + size
            if stop > end:
                self._needed = stop - at
                break
            payload = unmask(data[start:stop], data[start - _MASK_BYTES : start])
            at = stop
            if first == 0x82:
                messages.append(payload)
            elif first & 0x08:
                self._control(first & 0x0F, payload)
                if self._is_over():
                    return messages
            else:
                message = self._part(first, payload)
                if message is not None:
                    messages.append(message)
                elif self._is_over():
                    return messages
        if at < end:
            if end - at < 2:
                self._needed = 2
            self._rest += data[at:]
        return messages

    def _is_over(self) -> bool:
        """Return whether nothing more is taken: a call, since mypy narrows attributes for too long."""
        return self.closed is not None or self.failure is not None

    def _allows(self, first: int, size: int) -> bool:
        """Judge a frame by its header (RFC 6455, 5.2, 5.4 and 5.5)."""
        opcode = first & 0x0F
        if first & 0x70:
            return self._fail(PROTOCOL_ERROR, "a reserved bit is set")
        if opcode >= CLOSE:
            if opcode > _OPCODE_MAX:
                return self._fail(PROTOCOL_ERROR, "a reserved opcode")
            if size > CONTROL_BYTES_MAX or not first & 0x80:
                return self._fail(PROTOCOL_ERROR, "a control frame is one frame of at most 125 bytes")
            return True
        if opcode > BINARY:
            return self._fail(PROTOCOL_ERROR, "a reserved opcode")
        if (opcode == 0) != (self._opcode != 0):
            return self._fail(PROTOCOL_ERROR, "a message begins within another, or goes on before it began")
        if opcode == TEXT and not self._takes_text:
            return self._fail(UNSUPPORTED, "messages are binary")
        if len(self._message) + size > self._bytes_max:
            return self._fail(TOO_LARGE, f"a message has at most {self._bytes_max} bytes")
        return True

    def _part(self, first: int, payload: bytes) -> bytes | None:
        """Take a frame of text, or a fragment; return the message that it completes."""
        opcode = first & 0x0F
        final = first >= 0x80
        if opcode == TEXT:
            self._text = codecs.getincrementaldecoder("utf-8")()
        if self._text is not None:
            try:
                self._text.decode(payload, final)
            except UnicodeDecodeError:
                self._fail(INVALID, "text is UTF-8")
                return None
        if final and opcode:
            self._text = None
            return payload
        self._message += payload
        if not final:
            self._opcode = self._opcode or opcode
            return None
        whole = bytes(self._message)
        self._message.clear()
        self._opcode = 0
        self._text = None
        return whole

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.attention = True
            self.ping = payload
        elif opcode == CLOSE:
            self._close(payload)

    def _close(self, payload: bytes) -> None:
        """Take a close frame (RFC 6455, 5.5.1)."""
        self.attention = True
        if not payload:
            self.closed = NO_CODE
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not may_be_sent(code):
            self._fail(PROTOCOL_ERROR, "a close frame begins with a code that may be sent")
            return
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            self._fail(INVALID, "the reason of a close frame is UTF-8")
            return
        self.closed = code

    def _fail(self, code: int, text: str) -> bool:
        self.attention = True
        self.failure = (code, text)
        return False
