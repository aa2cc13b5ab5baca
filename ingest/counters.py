"""What a worker counts: a block of 64-bit integers in memory that the admin process reads.

Each worker writes only its own block, and the memory outlives it, so sums over workers never go back.
Labels are closed sets; the layout below is the list of all metrics (docs/guides/metrics.md explains them).
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from ingest.outcome import REFUSALS, Outcome


class Protocol(enum.Enum):
    """How a peer speaks to us."""

    MQTT = "mqtt"
    HTTP = "http"
    WEBSOCKET = "websocket"


class HandshakeFailure(enum.Enum):
    """Why a TLS handshake or the identity behind it was refused."""

    EXPIRED = "expired"
    UNKNOWN_CA = "unknown_ca"
    REVOKED = "revoked"
    NO_CERTIFICATE = "no_certificate"
    PROTOCOL_VERSION = "protocol_version"
    TIMEOUT = "timeout"
    BAD_IDENTITY = "bad_identity"
    OTHER = "other"


class ConnectRefusal(enum.Enum):
    """Why a connection was turned away before it could publish."""

    CONNECTION_CAP = "connection_cap"
    DESCRIPTORS = "descriptors"
    CREDENTIALS = "credentials"
    NOT_REGISTERED = "not_registered"
    SUSPENDED = "suspended"
    DEVICE_CONNECTIONS = "device_connections"
    TENANT_CONNECTIONS = "tenant_connections"
    WILL_NOT_AUTHORISED = "will_not_authorised"
    DRAINING = "draining"
    PROTOCOL = "protocol"


class Closing(enum.Enum):
    """Why an open connection ended."""

    PEER = "peer"
    LOST = "lost"
    PROTOCOL_ERROR = "protocol_error"
    KEEP_ALIVE = "keep_alive"
    TAKEN_OVER = "taken_over"
    REVOKED = "revoked"
    REFUSED = "refused"
    DRAINING = "draining"
    DISK = "disk"


class Family(msgspec.Struct, frozen=True):
    """One metric: its name without `headworks_`, its help text, and its label with all values."""

    name: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)


def _values(members: type[enum.Enum]) -> tuple[str, ...]:
    return tuple(str(member.value) for member in members)


REFUSED_VALUES: Final = tuple(outcome.name.lower() for outcome in REFUSALS)
COUNTERS: Final = (
    Family("messages_accepted_total", "Messages appended to a group; acknowledged after its fsync."),
    Family("messages_refused_total", "Messages refused, by reason.", "reason", REFUSED_VALUES),
    Family("records_delivered_total", "Records that the sink has taken."),
    Family("records_dead_lettered_total", "Accepted records that the sink will never take."),
    Family("connections_opened_total", "Connections opened, by protocol.", "protocol", _values(Protocol)),
    Family("connections_closed_total", "Connections closed, by reason.", "reason", _values(Closing)),
    Family(
        "connections_refused_total", "Connections turned away, by reason.", "reason", _values(ConnectRefusal)
    ),
    Family(
        "tls_handshakes_failed_total",
        "TLS handshakes that failed, by reason.",
        "reason",
        _values(HandshakeFailure),
    ),
    Family(
        "protocol_errors_total",
        "Peers that broke the protocol, by protocol.",
        "protocol",
        _values(Protocol),
    ),
    Family("spool_commits_total", "Group commits."),
    Family("spool_commit_bytes_total", "Bytes of committed groups."),
    Family("spool_commit_failures_total", "Commits that the disk refused; each is tried again."),
    Family("spool_commit_seconds_total", "Microseconds spent in commits, as seconds."),
    Family("tls_reloads_total", "Reloads of certificates, by result.", "result", ("ok", "failed")),
    Family("sessions_taken_over_total", "MQTT sessions taken over by a new connection."),
    Family(
        "sink_calls_total", "Calls to the sink's service, by result.", "result", ("ok", "partial", "failed")
    ),
    Family("sink_records_refused_total", "Records that the service refused and that were sent again."),
    Family("worker_starts_total", "Starts of this worker."),
)
ACK_BUCKETS_S: Final = tuple(0.0001 * 2 ** (step / 2) for step in range(36))
"""Upper bounds of the acknowledgement histogram, from 0.1 ms to about 18 s."""

_OFFSETS: Final[dict[tuple[str, str], int]] = {}
_next = 0
for _family in COUNTERS:
    for _value in _family.values:
        _OFFSETS[_family.name, _value] = _next
        _next += 1
ACK_START: Final = _next
GLOBAL_COUNTERS: Final = _next + len(ACK_BUCKETS_S) + 1

ACCEPTED: Final = _OFFSETS["messages_accepted_total", ""]
DELIVERED: Final = _OFFSETS["records_delivered_total", ""]
TENANT_FIELDS: Final = ("accepted", "delivered", "dead_lettered", *REFUSED_VALUES)
TENANT_REFUSED_START: Final = 3
TENANT_STRIDE: Final = len(TENANT_FIELDS)


def offset(name: str, value: str = "") -> int:
    """Return where the counter `name` with label `value` stands in a block."""
    return _OFFSETS[name, value]


REFUSED: Final[dict[Outcome, int]] = {
    outcome: offset("messages_refused_total", outcome.name.lower()) for outcome in REFUSALS
}
TENANT_REFUSED: Final[dict[Outcome, int]] = {
    outcome: TENANT_REFUSED_START + position for position, outcome in enumerate(REFUSALS)
}


def ack_bucket(seconds: float) -> int:
    """Return where an acknowledgement that took `seconds` is counted."""
    return ACK_START + bisect.bisect_left(ACK_BUCKETS_S, seconds)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the upper bound in seconds of the bucket in which `share` of the observations is reached."""
    total = sum(counts)
    if not total:
        return None
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= total * share:
            return ACK_BUCKETS_S[min(bucket, len(ACK_BUCKETS_S) - 1)]
    return ACK_BUCKETS_S[-1]
