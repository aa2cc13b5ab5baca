"""Log and metric of each thing that happens, one method an event.

Metrics count batches; the log has rare things only, at most `LOGGED_PER_S` a second of each, without
payloads and secrets. Device names stand in logs, never in labels.
"""

from __future__ import annotations

from typing import Any, Final

from ingest import counters
from ingest.counters import Closing, ConnectRefusal, Protocol
from ingest.outcome import Outcome
from ingest.spool.spool import State
from ingest.spool.store import SpoolError
from runtime import clock
from runtime.tls.failure import HandshakeFailure

LOGGED_PER_S: Final = 10
FIRST_ACCEPTED: Final = counters.tenant_start(0) + counters.TENANT_ACCEPTED
TEXT_MAX: Final = 200
"""Characters of one field: some of it comes from peers."""


class Events:
    """Counts into one worker's block and writes to its log."""

    def __init__(self, block: memoryview[int], log: Any) -> None:
        self._block = block
        self._log = log
        self._logged: dict[str, tuple[int, int]] = {}

    def _count(self, name: str, value: str = "", by: int = 1) -> None:
        self._block[counters.offset(name, value)] += by

    def _say(self, level: str, event: str, **fields: object) -> None:
        """Log unless `event` was logged too often this second; say later how many were left out."""
        second = int(clock.monotonic_s())
        since, said = self._logged.get(event, (second, 0))
        if since != second:
            if said > LOGGED_PER_S:
                self._log.warning("left_out", of=event, count=said - LOGGED_PER_S)
            since, said = second, 0
        self._logged[event] = (since, said + 1)
        if said < LOGGED_PER_S:
            getattr(self._log, level)(event, **{name: _plain(value) for name, value in fields.items()})

    def publishes(self, tenant_index: int, accepted: int) -> None:
        """Count messages of one read that were accepted. Hot."""
        block = self._block
        block[counters.ACCEPTED] += accepted
        block[FIRST_ACCEPTED + tenant_index * counters.TENANT_STRIDE] += accepted

    def publish_refused(self, outcome: Outcome, count: int, tenant_index: int) -> None:
        """Count messages that were refused for one reason."""
        block = self._block
        block[counters.REFUSED[outcome]] += count
        block[counters.tenant_start(tenant_index) + counters.TENANT_REFUSED[outcome]] += count

    def delivered(self, tenants: dict[int, int]) -> None:
        """Count records that the sink has taken, by tenant index."""
        for index, records in tenants.items():
            self._block[counters.DELIVERED] += records
            self._block[counters.tenant_start(index) + counters.TENANT_DELIVERED] += records

    def dead_lettered(self, tenant_index: int, reason: str) -> None:
        """Count an accepted record that went to the dead letters."""
        self._count("records_dead_lettered_total")
        self._block[counters.tenant_start(tenant_index) + counters.TENANT_DEAD_LETTERED] += 1
        self._say("warning", "dead_lettered", reason=reason)

    def committed(self, size: int, seconds: float) -> None:
        """Count a group commit."""
        counters.COMMIT_BYTES.observe(self._block, size)
        counters.COMMIT_S.observe(self._block, seconds)

    def acknowledged(self, seconds: float, count: int) -> None:
        """Count acknowledgements that left `seconds` after their messages were read."""
        counters.ACKNOWLEDGE_S.observe(self._block, seconds, count)

    def commit_failed(self, error: str) -> None:
        """Note that the disk refuses."""
        self._count("spool_commit_failures_total")
        self._say("error", "disk_refuses", error=error)

    def spool_moved(self, was: State, state: State, error: SpoolError | None) -> None:
        """Note that the disk refuses or takes again, and that the spool is full or has room again."""
        if state is State.BROKEN:
            self.commit_failed(str(error))
        elif was is State.BROKEN:
            self._say("info", "disk_recovered")
        if state is State.FULL:
            self._say("warning", "spool_full")
        elif was is State.FULL and state is State.OPEN:
            self._say("info", "spool_has_room")

    def connection_opened(self, protocol: Protocol) -> None:
        """Count a connection in."""
        self._count("connections_opened_total", protocol.value)

    def connection_closed(self, reason: Closing) -> None:
        """Count a connection out."""
        self._count("connections_closed_total", reason.value)

    def connect_refused(self, reason: ConnectRefusal, detail: str = "", peer: str = "") -> None:
        """Note a connection that was turned away."""
        self._count("connections_refused_total", reason.value)
        self._say("info", "connection_refused", reason=reason.value, detail=detail, peer=peer)

    def handshake_failed(self, reason: HandshakeFailure, detail: str, peer: str) -> None:
        """Note a TLS handshake that failed."""
        self._count("tls_handshakes_failed_total", reason.value)
        self._say("info", "handshake_failed", reason=reason.value, detail=detail, peer=peer)

    def protocol_error(self, protocol: Protocol, detail: str, peer: str) -> None:
        """Note a peer that broke the protocol."""
        self._count("protocol_errors_total", protocol.value)
        self._say("info", "protocol_error", protocol=protocol.value, detail=detail, peer=peer)

    def request_unsettled(self) -> None:
        """Note a request whose fsync did not end in time, so that nobody could say what became of it."""
        self._count("requests_unsettled_total")
        self._say("error", "request_unsettled")

    def idempotency_full(self) -> None:
        """Note a key that the node has no room to remember."""
        self._count("idempotency_keys_dropped_total")
        self._say("warning", "idempotency_directory_full", todo="raise memory.idempotency_keys_max")

    def taken_over(self) -> None:
        """Count a session that a new connection took over."""
        self._count("sessions_taken_over_total")

    def tls_reloaded(self, error: str | None) -> None:
        """Note a reload of certificates, and whether the old set was kept."""
        self._count("tls_reloads_total", "ok" if error is None else "failed")
        if error is None:
            self._say("info", "tls_reloaded")
        else:
            self._say("error", "tls_reload_failed", error=error, kept="the previous set")

    def jwks_fetched(self, error: str | None) -> None:
        """Note that the keys for tokens were read, or why not."""
        self._count("jwks_fetches_total", "ok" if error is None else "failed")
        if error is not None:
            self._say("warning", "jwks_fetch_failed", error=error, kept="the previous keys")

    def sink_called(self, result: str, refused: int = 0) -> None:
        """Count a call to the sink's service; `result` is ok, partial or failed."""
        self._count("sink_calls_total", result)
        if refused:
            self._count("sink_records_refused_total", by=refused)

    def records_expired(self, count: int) -> None:
        """Count records that the local sink has deleted to make room for new ones."""
        self._count("sink_records_expired_total", by=count)

    def sink_trouble(self, event: str, detail: str) -> None:
        """Note what the sink has to say."""
        self._say("warning", event, detail=detail)

    def worker_started(self) -> None:
        """Count a start of this worker."""
        self._count("worker_starts_total")

    def unexpected(self, where: str, error: BaseException) -> None:
        """Note an error that should not have been possible."""
        self._log.error("unexpected", where=where, exc_info=error)


def _plain(value: object) -> object:
    """Return text in one line, of printable characters, and not too long."""
    if not isinstance(value, str):
        return value
    if len(value) > TEXT_MAX:
        value = f"{value[:TEXT_MAX]}…"
    return value if value.isprintable() else value.encode("unicode_escape").decode()
