"""What became of one publish: the closed set of answers, and how each protocol says them."""

from __future__ import annotations

import enum
from typing import Final


class Outcome(enum.IntEnum):
    """The verdict on one publish. Everything but `ACCEPTED` is a refusal with that name."""

    ACCEPTED = 0
    NOT_AUTHORISED = 1
    BAD_TOPIC = 2
    MALFORMED = 3
    TOO_LARGE = 4
    DEVICE_LIMIT = 5
    TENANT_LIMIT = 6
    SHED = 7
    SPOOL_FULL = 8
    DISK_ERROR = 9
    DRAINING = 10
    SUSPENDED = 11


REFUSALS: Final = tuple(outcome for outcome in Outcome if outcome is not Outcome.ACCEPTED)

# MQTT 5, table 3-8 (PUBACK) and 3-9 (PUBREC).
MQTT_REASON: Final[dict[Outcome, int]] = {
    Outcome.ACCEPTED: 0x00,
    Outcome.NOT_AUTHORISED: 0x87,
    Outcome.BAD_TOPIC: 0x90,
    Outcome.MALFORMED: 0x99,
    Outcome.TOO_LARGE: 0x99,
    Outcome.DEVICE_LIMIT: 0x97,
    Outcome.TENANT_LIMIT: 0x97,
    Outcome.SHED: 0x97,
    Outcome.SPOOL_FULL: 0x97,
    Outcome.DISK_ERROR: 0x80,
    Outcome.DRAINING: 0x83,
    Outcome.SUSPENDED: 0x87,
}

HTTP_STATUS: Final[dict[Outcome, int]] = {
    Outcome.ACCEPTED: 202,
    Outcome.NOT_AUTHORISED: 403,
    Outcome.BAD_TOPIC: 404,
    Outcome.MALFORMED: 422,
    Outcome.TOO_LARGE: 413,
    Outcome.DEVICE_LIMIT: 429,
    Outcome.TENANT_LIMIT: 429,
    Outcome.SHED: 429,
    Outcome.SPOOL_FULL: 503,
    Outcome.DISK_ERROR: 503,
    Outcome.DRAINING: 503,
    Outcome.SUSPENDED: 403,
}

DETAIL: Final[dict[Outcome, str]] = {
    Outcome.ACCEPTED: "durable",
    Outcome.NOT_AUTHORISED: "this identity may not publish for that tenant and device",
    Outcome.BAD_TOPIC: "not a telemetry topic: dt/{tenant}/{device}/{stream...}",
    Outcome.MALFORMED: "the payload is not telemetry",
    Outcome.TOO_LARGE: "the payload is larger than the stream takes",
    Outcome.DEVICE_LIMIT: "the device is over its limit",
    Outcome.TENANT_LIMIT: "the tenant is over its limit",
    Outcome.SHED: "the device is over its limit, and its plan sheds QoS 0",
    Outcome.SPOOL_FULL: "the spool is full, try again later",
    Outcome.DISK_ERROR: "the disk refuses writes, try again later",
    Outcome.DRAINING: "this node is shutting down, reconnect",
    Outcome.SUSPENDED: "the tenant or the device is suspended, or not registered",
}
