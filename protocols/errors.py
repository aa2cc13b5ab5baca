"""The one error that a peer can cause in a protocol."""

from __future__ import annotations


class ProtocolError(Exception):
    """The peer broke the protocol; `reason` is a reason code of MQTT 5 (section 2.4)."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
