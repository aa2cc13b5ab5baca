"""What a worker counts: a block of 64-bit integers in memory that the admin process reads.

Each worker writes only its own block, and the memory outlives it, so sums over workers never go back.
Labels are closed sets; the layout below is the list of all metrics (docs/guides/metrics.md explains them).
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ingest.outcome import REFUSALS, Outcome
from runtime.tls.failure import HandshakeFailure


class Protocol(enum.Enum):
    """How a peer speaks to us."""

    MQTT = "mqtt"
    HTTP = "http"
    WEBSOCKET = "websocket"


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
    GONE = "gone"
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
    Family(
        "connections_opened_total",
        "Connections by what they speak, at a first request, an upgrade, or a CONNECT that is let in.",
        "protocol",
        _values(Protocol),
    ),
    Family(
        "connections_closed_total", "Of those, connections closed, by reason.", "reason", _values(Closing)
    ),
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
    Family("spool_commit_failures_total", "Commits that the disk refused; each is tried again."),
    Family("requests_unsettled_total", "HTTP requests answered before their fsync ended: stored, or not."),
    Family(
        "idempotency_keys_dropped_total", "Idempotency keys without room in memory: not recognised again."
    ),
    Family("tls_reloads_total", "Reloads of certificates, by result.", "result", ("ok", "failed")),
    Family("jwks_fetches_total", "Reads of the keys for tokens, by result.", "result", ("ok", "failed")),
    Family("sessions_taken_over_total", "MQTT sessions taken over by a new connection."),
    Family(
        "sink_calls_total", "Calls to the sink's service, by result.", "result", ("ok", "partial", "failed")
    ),
    Family("sink_records_refused_total", "Records that the service refused and that were sent again."),
    Family("sink_records_expired_total", "Records that the local sink deleted to make room for new ones."),
    Family("worker_starts_total", "Starts of this worker."),
)


class Histogram:
    """Where observations stand in a block: a counter a bucket, then the sum in parts of `unit`.

    Bucket `i` counts what is at most `bounds[i]` and above the bound before; the last has no bound.
    """

    __slots__ = ("bounds", "end", "help", "name", "start", "unit")

    def __init__(self, name: str, text: str, *, bounds: tuple[float, ...], unit: float, start: int) -> None:
        self.name = name
        self.help = text
        self.bounds = bounds
        self.unit = unit
        self.start = start
        self.end = start + len(bounds) + 2

    def observe(self, block: memoryview[int], value: float, count: int = 1) -> None:
        """Count `count` observations of `value`: once a commit, once a connection."""
        block[self.start + bisect.bisect_left(self.bounds, value)] += count
        block[self.end - 1] += int(value / self.unit) * count

    def buckets(self, block: Sequence[int]) -> Sequence[int]:
        """Return the number of observations in each bucket."""
        return block[self.start : self.end - 1]

    def total(self, block: Sequence[int]) -> float:
        """Return the sum of all observations."""
        return block[self.end - 1] * self.unit

    def quantile(self, block: Sequence[int], share: float) -> float | None:
        """Return what `share` of the observations are below, estimated within a bucket; None without any."""
        counts = self.buckets(block)
        rank = sum(counts) * share
        if not rank:
            return None
        below, lower = 0, 0.0
        for bound, count in zip(self.bounds, counts, strict=False):
            if below + count >= rank:
                return lower + (bound - lower) * (rank - below) / count
            below, lower = below + count, bound
        return lower


def _doubling(first: float, steps: int, *, every: int = 1) -> tuple[float, ...]:
    return tuple(first * 2 ** (step / every) for step in range(steps))


def _layout(families: Iterable[Family]) -> dict[tuple[str, str], int]:
    labels = ((family.name, value) for family in families for value in family.values)
    return {label: position for position, label in enumerate(labels)}


_OFFSETS: Final = _layout(COUNTERS)
ACKNOWLEDGE_S: Final = Histogram(
    "acknowledge_seconds",
    "From the first read of a group to its acknowledgement, after the fsync: at most this long.",
    bounds=_doubling(0.0001, 36, every=2),
    unit=1e-6,
    start=len(_OFFSETS),
)
COMMIT_S: Final = Histogram(
    "spool_commit_seconds",
    "How long a group commit took, fsync included.",
    bounds=_doubling(0.0001, 18),
    unit=1e-6,
    start=ACKNOWLEDGE_S.end,
)
COMMIT_BYTES: Final = Histogram(
    "spool_commit_bytes",
    "How large a committed group was.",
    bounds=_doubling(256, 17),
    unit=1,
    start=COMMIT_S.end,
)
HISTOGRAMS: Final = (ACKNOWLEDGE_S, COMMIT_S, COMMIT_BYTES)
GLOBAL_COUNTERS: Final = COMMIT_BYTES.end
"""Where the first tenant's counters start; each has `TENANT_STRIDE`."""

ACCEPTED: Final = _OFFSETS["messages_accepted_total", ""]
DELIVERED: Final = _OFFSETS["records_delivered_total", ""]
TENANT_FIELDS: Final = ("accepted", "delivered", "dead_lettered", *REFUSED_VALUES)
TENANT_ACCEPTED: Final = TENANT_FIELDS.index("accepted")
TENANT_DELIVERED: Final = TENANT_FIELDS.index("delivered")
TENANT_DEAD_LETTERED: Final = TENANT_FIELDS.index("dead_lettered")
TENANT_STRIDE: Final = len(TENANT_FIELDS)


def offset(name: str, value: str = "") -> int:
    """Return where the counter `name` with label `value` stands in a block."""
    return _OFFSETS[name, value]


def tenant_start(tenant_index: int) -> int:
    """Return where the counters of a tenant start in a block, in the order of `TENANT_FIELDS`."""
    return GLOBAL_COUNTERS + tenant_index * TENANT_STRIDE


REFUSED: Final[dict[Outcome, int]] = {
    outcome: offset("messages_refused_total", outcome.name.lower()) for outcome in REFUSALS
}
TENANT_REFUSED: Final[dict[Outcome, int]] = {
    outcome: TENANT_FIELDS.index(outcome.name.lower()) for outcome in REFUSALS
}
