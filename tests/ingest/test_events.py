from __future__ import annotations

from collections.abc import Callable

import pytest

from ingest import counters
from ingest.counters import Closing, ConnectRefusal, Protocol
from ingest.events import LOGGED_PER_S, TEXT_MAX, Events
from ingest.outcome import REFUSALS
from ingest.spool.spool import State
from ingest.spool.store import SpoolError
from runtime import clock
from runtime.tls.failure import HandshakeFailure

TENANTS = 3


class Log:
    """Keeps what is logged, as structlog's loggers are called."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.lines.append(("error", event, fields))


class Seen:
    """Events with the block and the log that they write to."""

    def __init__(self) -> None:
        self.block: memoryview[int] = memoryview(bytearray(8 * counters.tenant_start(TENANTS))).cast("q")
        self.log = Log()
        self.events = Events(self.block, self.log)

    def counted(self) -> dict[str, int]:
        """Return the counters that are not 0, by name and label; a tenant's by its index and field."""
        found = {
            f"{family.name} {value}".strip(): self.block[counters.offset(family.name, value)]
            for family in counters.COUNTERS
            for value in family.values
        }
        for tenant in range(TENANTS):
            for place, field in enumerate(counters.TENANT_FIELDS):
                found[f"{tenant} {field}"] = self.block[counters.tenant_start(tenant) + place]
        for histogram in counters.HISTOGRAMS:
            found[histogram.name] = sum(histogram.buckets(self.block))
        return {name: count for name, count in found.items() if count}


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda now_s: monkeypatch.setattr(clock, "monotonic_s", lambda: now_s)


def test_publishes_are_counted_for_all_and_for_their_tenant(seen: Seen) -> None:
    seen.events.publishes(2, 5)
    seen.events.publishes(0, 1)
    assert seen.counted() == {"messages_accepted_total": 6, "2 accepted": 5, "0 accepted": 1}
    assert not seen.log.lines


def test_every_refusal_is_counted_for_all_and_for_its_tenant(seen: Seen) -> None:
    for number, outcome in enumerate(REFUSALS, start=1):
        seen.events.publish_refused(outcome, number, 1)
    names = [outcome.name.lower() for outcome in REFUSALS]
    expected = {f"messages_refused_total {name}": number for number, name in enumerate(names, start=1)}
    expected |= {f"1 {name}": number for number, name in enumerate(names, start=1)}
    assert seen.counted() == expected
    assert not seen.log.lines


def test_what_became_of_accepted_records_is_counted_by_tenant(seen: Seen) -> None:
    seen.events.delivered({1: 4, 2: 3})
    seen.events.dead_lettered(2, "too_large")
    assert seen.counted() == {
        "records_delivered_total": 7,
        "records_dead_lettered_total": 1,
        "1 delivered": 4,
        "2 delivered": 3,
        "2 dead_lettered": 1,
    }
    assert seen.log.lines == [("warning", "dead_lettered", {"reason": "too_large"})]


def test_commits_and_acknowledgements_go_to_their_histograms(seen: Seen) -> None:
    seen.events.committed(4096, 0.25)
    seen.events.acknowledged(0.5, 30)
    assert seen.counted() == {"spool_commit_seconds": 1, "spool_commit_bytes": 1, "acknowledge_seconds": 30}
    assert counters.COMMIT_BYTES.total(seen.block) == 4096
    assert counters.COMMIT_S.total(seen.block) == 0.25
    assert counters.ACKNOWLEDGE_S.total(seen.block) == 15.0


CASES: list[tuple[Callable[[Events], None], dict[str, int], list[str]]] = [
    (lambda e: e.commit_failed("full"), {"spool_commit_failures_total": 1}, ["error disk_refuses"]),
    (
        lambda e: e.spool_moved(State.OPEN, State.BROKEN, SpoolError("full")),
        {"spool_commit_failures_total": 1},
        ["error disk_refuses"],
    ),
    (lambda e: e.spool_moved(State.BROKEN, State.OPEN, None), {}, ["info disk_recovered"]),
    (lambda e: e.spool_moved(State.OPEN, State.FULL, None), {}, ["warning spool_full"]),
    (lambda e: e.spool_moved(State.FULL, State.OPEN, None), {}, ["info spool_has_room"]),
    (lambda e: e.taken_over(), {"sessions_taken_over_total": 1}, []),
    (lambda e: e.tls_reloaded(None), {"tls_reloads_total ok": 1}, ["info tls_reloaded"]),
    (lambda e: e.tls_reloaded("bad"), {"tls_reloads_total failed": 1}, ["error tls_reload_failed"]),
    (lambda e: e.sink_called("ok"), {"sink_calls_total ok": 1}, []),
    (
        lambda e: e.sink_called("partial", 3),
        {"sink_calls_total partial": 1, "sink_records_refused_total": 3},
        [],
    ),
    (lambda e: e.sink_trouble("breaker_open", "shard 1"), {}, ["warning breaker_open"]),
    (lambda e: e.worker_started(), {"worker_starts_total": 1}, []),
    (lambda e: e.unexpected("mqtt", ValueError()), {}, ["error unexpected"]),
]


@pytest.mark.parametrize(("event", "counted", "logged"), CASES)
def test_an_event_is_counted_and_logged_as_listed(
    seen: Seen, event: Callable[[Events], None], counted: dict[str, int], logged: list[str]
) -> None:
    event(seen.events)
    assert seen.counted() == counted
    assert [f"{level} {name}" for level, name, _ in seen.log.lines] == logged


def test_every_reason_for_which_a_connection_ends_has_its_counter(seen: Seen) -> None:
    for protocol in Protocol:
        seen.events.connection_opened(protocol)
        seen.events.protocol_error(protocol, "detail", "127.0.0.1")
    for closing in Closing:
        seen.events.connection_closed(closing)
    for refusal in ConnectRefusal:
        seen.events.connect_refused(refusal)
    for failure in HandshakeFailure:
        seen.events.handshake_failed(failure, "detail", "127.0.0.1")
    assert seen.counted() == (
        {f"connections_opened_total {protocol.value}": 1 for protocol in Protocol}
        | {f"protocol_errors_total {protocol.value}": 1 for protocol in Protocol}
        | {f"connections_closed_total {closing.value}": 1 for closing in Closing}
        | {f"connections_refused_total {refusal.value}": 1 for refusal in ConnectRefusal}
        | {f"tls_handshakes_failed_total {failure.value}": 1 for failure in HandshakeFailure}
    )


def test_a_flood_is_counted_whole_and_logged_in_part(seen: Seen, at: Callable[[float], None]) -> None:
    at(100.2)
    for _ in range(1000):
        seen.events.commit_failed("full")
    assert seen.counted() == {"spool_commit_failures_total": 1000}
    assert len(seen.log.lines) == LOGGED_PER_S
    seen.events.spool_moved(State.OPEN, State.FULL, None)
    assert seen.log.lines[-1][1] == "spool_full", "another event has its own allowance"
    at(101.0)
    seen.events.commit_failed("full")
    assert seen.log.lines[-2:] == [
        ("warning", "left_out", {"of": "disk_refuses", "count": 1000 - LOGGED_PER_S}),
        ("error", "disk_refuses", {"error": "full"}),
    ]


def test_what_a_peer_sends_cannot_forge_or_flood_the_log(seen: Seen) -> None:
    seen.events.protocol_error(Protocol.MQTT, "\x1b[2Jx\nlevel=error", "127.0.0.1")
    seen.events.protocol_error(Protocol.MQTT, "y" * 100_000, "127.0.0.1")
    details = [str(fields["detail"]) for _, _, fields in seen.log.lines]
    assert details[0] == "\\x1b[2Jx\\nlevel=error"
    assert details[1] == "y" * TEXT_MAX + "…"
