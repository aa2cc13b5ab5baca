"""What happens to a publish between the socket and the spool: authorise, charge, decode, append.

One call takes everything that one read of a connection gave. Nothing here awaits; answers are owed
through the spool (`Spool.answer`) and go out after the fsync.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ingest.delivery.envelope import payload_of
from ingest.events import Events
from ingest.limits import PipelineLimits
from ingest.order import Order
from ingest.outcome import Outcome
from ingest.records import Encoding, Run, ordinal
from ingest.routes import Address, StreamRules, address, address_of_topic
from ingest.spool.group import Waiter
from ingest.spool.schema import Booking
from ingest.spool.spool import Spool, State, dead_letter
from ingest.spool.store import Statement
from ingest.submission import Submission
from protocols.mqtt.session import Publish
from protocols.telemetry import Malformed, decode, decode_one_json
from routing.limits.allowance import Allowance, Allowances
from routing.limits.bucket import TokenBucket
from routing.limits.terms import NOBODY, PAUSE, REFUSE, SHED, Over
from routing.tenancy.identity import Identity
from runtime import clock

ACCEPTED: Final = int(Outcome.ACCEPTED)
JSON: Final = Encoding.JSON  # on Python 3.11 a member by its class costs what a payload does to decode
OPEN: Final = State.OPEN
KEPT: Final = frozenset({Outcome.MALFORMED, Outcome.TOO_LARGE})
"""Refusals for the content, which are kept for inspection."""
NOWHERE: Final = -1
"""No home is this word."""
OVER: Final = {Over.DEVICE: Outcome.DEVICE_LIMIT, Over.TENANT: Outcome.TENANT_LIMIT}


class Route:
    """A topic that this producer may publish to."""

    __slots__ = (
        "allowance",
        "device",
        "home",
        "home_word",
        "payload_bytes_max",
        "raw",
        "stream",
        "tenant",
        "tenant_index",
    )

    def __init__(
        self,
        where: Address,
        *,
        raw: bool,
        payload_bytes_max: int,
        allowance: Allowance,
        tenant_index: int,
    ) -> None:
        # Millions of routes share few tenants and streams.
        self.tenant = sys.intern(where.tenant)
        self.device = where.device
        self.stream = sys.intern(where.stream)
        self.raw = raw
        self.payload_bytes_max = payload_bytes_max
        self.allowance = allowance
        self.tenant_index = tenant_index
        self.home, self.home_word = 0, NOWHERE


class Producer:
    """One connection as the pipeline sees it: who it is, and the routes it has used.

    `can_refuse` is False where the protocol has no word for a refusal (MQTT 3.1.1).
    """

    __slots__ = ("_others", "can_refuse", "identity", "route", "topic")

    def __init__(self, identity: Identity, *, can_refuse: bool) -> None:
        self.identity = identity
        self.can_refuse = can_refuse
        # The first topic, which is the only one of most devices, and its route; then all others.
        self.topic = b""
        self.route: Route | None = None
        self._others: dict[bytes, Route] | None = None

    def find(self, topic: bytes) -> Route | None:
        """Return the route of a topic that was used before."""
        if topic == self.topic:
            return self.route
        return self._others.get(topic) if self._others is not None else None

    def learn(self, topic: bytes, route: Route, *, routes_max: int) -> None:
        """Remember a route; when there are too many, only this one."""
        if self._others is not None and len(self._others) + 1 >= routes_max:
            self.forget_routes()
        if self.route is None or routes_max == 1:
            self.topic, self.route = topic, route
        elif self._others is None:
            self._others = {topic: route}
        else:
            self._others[topic] = route

    def forget_routes(self) -> None:
        """Look every route up again."""
        self.topic, self.route, self._others = b"", None, None


class Pipeline:
    """Admits publishes of every protocol into one worker's spool."""

    def __init__(
        self,
        *,
        spool: Spool,
        order: Order,
        streams: StreamRules,
        allowances: Allowances,
        admits: Callable[[str, str], bool],
        tenant_index: Callable[[str], int],
        events: Events,
        limits: PipelineLimits,
    ) -> None:
        self._spool = spool
        self._order = order
        self._homes = order.homes.words
        self._streams = streams
        self._allowances = allowances
        self._admits = admits
        self._tenant_index = tenant_index
        self._events = events
        self._limits = limits
        self._letters_kept = TokenBucket(
            rate_per_s=limits.refused_kept_per_s, burst=limits.refused_kept_per_s, now_s=clock.monotonic_s()
        )
        self.letters = self.letters_bytes = 0
        self.draining = False

    def has_room(self) -> bool:
        """Return whether `publish` may be called; if not, hold the publishes and wait for room."""
        spool = self._spool
        return spool.state is OPEN and spool.current.bytes < self._limits.group_bytes_max

    def refuses(self) -> bool:
        """Return whether publishes are to be refused, not held, while there is no room."""
        return self._limits.refuse_when_full and self._spool.state is State.FULL

    def refuse_all(self, producer: Producer, publishes: list[Publish], outcome: Outcome) -> list[int]:
        """Refuse every publish of a read for one reason, and count them."""
        index = self._tenant_index(producer.identity.tenant)
        self._events.publish_refused(outcome, len(publishes), index)
        return [outcome] * len(publishes)

    def publish(
        self, producer: Producer, publishes: list[Publish], now_s: float
    ) -> tuple[list[int] | None, float]:
        """Admit the publishes of one read; return (outcomes or None for all accepted, pause in s).

        Hot: guarded by bench/test_worker.py::test_publish. Runs of one topic are taken whole: one look-up,
        one charge and one run each. What is not plain JSON telemetry, or is refused, leaves by one call.
        """
        topic = publishes[0][0]
        count = len(publishes)
        if count == 1:
            payloads = [publishes[0][1]]
            size = len(payloads[0])
        else:
            for publish in publishes:
                if publish[0] != topic:
                    return self._publish_mixed(producer, publishes, now_s)
            payloads = [publish[1] for publish in publishes]
            size = sum(map(len, payloads))
        route = producer.route if topic == producer.topic else producer.find(topic)
        if route is None:
            found = self._route(producer, topic)
            if isinstance(found, Outcome):
                return self.refuse_all(producer, publishes, found), 0.0
            route = found
        at_home = self._homes[route.home] == route.home_word
        allowance = route.allowance
        policy = allowance.policy
        refuse = policy is not PAUSE and (producer.can_refuse or policy is SHED)
        allowed, pause_s, over = allowance.charge(count, size, now_s, refuse=refuse, at_home=at_home)
        if allowed < count:
            pause_s = self._charge_the_rest(route, publishes[allowed:], now_s)
        if over or route.raw or size > route.payload_bytes_max:
            return self._publish_with_care(producer, route, publishes, now_s, (allowed, pause_s, over))
        try:
            for payload in payloads:
                decode_one_json(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._publish_with_care(producer, route, publishes, now_s, (allowed, pause_s, over))
        run = Run(route.tenant, route.device, route.stream, JSON, clock.unix_ms(), count, payloads)
        if not at_home:
            self._come_home(route)
        spool = self._spool
        spool.current.append(run, size)
        if not spool.scheduled:
            spool.schedule()
        return None, pause_s

    def _publish_mixed(
        self, producer: Producer, publishes: list[Publish], now_s: float
    ) -> tuple[list[int] | None, float]:
        """Cut publishes of several topics into runs of one."""
        outcomes: list[int] = []
        pause_s = 0.0
        start = 0
        for end in range(1, len(publishes) + 1):
            if end < len(publishes) and publishes[end][0] == publishes[start][0]:
                continue
            run = publishes[start:end]
            of_run, run_pause_s = self.publish(producer, run, now_s)
            outcomes.extend(of_run if of_run is not None else [ACCEPTED] * len(run))
            pause_s = max(pause_s, run_pause_s)
            start = end
        return (outcomes if any(outcomes) else None), pause_s

    @staticmethod
    def _charge_the_rest(route: Route, publishes: list[Publish], now_s: float) -> float:
        """Charge what a plan that sheds takes all the same, QoS 1 and 2, and return the pause for it."""
        if route.allowance.policy is not SHED:
            return 0.0  # refused, so nothing is owed
        payloads = [payload for _, payload, qos, _ in publishes if qos]
        if not payloads:
            return 0.0
        return route.allowance.charge(len(payloads), sum(map(len, payloads)), now_s, refuse=False)[1]

    def _publish_with_care(
        self,
        producer: Producer,
        route: Route,
        publishes: list[Publish],
        now_s: float,
        charged: tuple[int, float, Over],
    ) -> tuple[list[int] | None, float]:
        """Judge publishes of one route one by one: lists, MessagePack, raw, malformed, over a limit.

        Each was `charged` as one message; a list is charged the rest of its records when it is looked into.
        """
        allowed, pause_s, over = charged
        policy = route.allowance.policy
        sheds = policy is SHED
        outcomes: list[int] = []
        for position, (_, payload, qos, _) in enumerate(publishes):
            may_refuse = not qos if sheds else policy is REFUSE and producer.can_refuse
            count = 1
            if position >= allowed and may_refuse:
                outcome = Outcome.SHED if sheds else OVER[over]
            else:
                outcome, detail, encoding, count = self._examine(route, payload)
                if count > 1:
                    paid = allowed - position if may_refuse else None
                    of_list, list_s = self._charge_list(route, count - 1, now_s, paid)
                    if of_list:
                        outcome = Outcome.SHED if sheds else OVER[of_list]
                    pause_s = max(pause_s, list_s)
                if outcome is Outcome.ACCEPTED:
                    self._append(route, payload, encoding, count)
                elif outcome in KEPT:
                    must_answer = qos > 0 and not producer.can_refuse
                    outcome = self._keep(route, outcome, detail, payload, must_answer=must_answer)
            if outcome is not Outcome.ACCEPTED:
                self._events.publish_refused(outcome, max(1, count), route.tenant_index)
            outcomes.append(outcome)
        return (outcomes if any(outcomes) else None), pause_s

    @staticmethod
    def _charge_list(route: Route, more: int, now_s: float, paid: int | None) -> tuple[Over, float]:
        """Charge what a list holds beyond its first record; return (whose limit refuses it, pause in s).

        `paid` is how many of the read's publishes are charged and not yet looked at; None where all is taken.
        """
        if paid is not None:
            return route.allowance.charge_whole(more, 0, now_s, paid=paid)[1], 0.0
        return NOBODY, route.allowance.charge(more, 0, now_s, refuse=False)[1]

    def _examine(self, route: Route, payload: bytes) -> tuple[Outcome, str, Encoding, int]:
        """Judge one payload: (outcome, why, how it is written, number of records)."""
        if len(payload) > route.payload_bytes_max:
            why = f"{len(payload)} bytes; the stream takes {route.payload_bytes_max}"
            return Outcome.TOO_LARGE, why, Encoding.RAW, 0
        if route.raw:
            return Outcome.ACCEPTED, "", Encoding.RAW, 1
        try:
            form, count = decode(payload, self._limits.records_max)
        except Malformed as error:
            return Outcome.MALFORMED, str(error), Encoding.RAW, 0
        return Outcome.ACCEPTED, "", Encoding(form), count

    def _append(self, route: Route, payload: bytes, encoding: Encoding, count: int) -> int:
        if self._homes[route.home] != route.home_word:
            self._come_home(route)
        run = Run(route.tenant, route.device, route.stream, encoding, clock.unix_ms(), count, [payload])
        return self._spool.append(run, len(payload))

    def _keep(
        self, route: Route, outcome: Outcome, detail: str, payload: bytes, *, must_answer: bool
    ) -> Outcome:
        """Keep a payload that was refused for its content, as far as there is room, and return its outcome.

        With `must_answer` (MQTT 3.1.1, QoS 1 and 2) there is no word for a refusal: the payload is kept
        whole and acknowledged once it is durable as a dead letter, or refused when there is no room.
        """
        size = len(payload)
        if must_answer and self._has_room_for(size):
            self._events.publishes(route.tenant_index, 1)
            self._events.dead_lettered(route.tenant_index, outcome.name.lower())
            self._add_letter(route, outcome, detail, payload, Booking.ACKNOWLEDGED)
            return Outcome.ACCEPTED
        now_s = clock.monotonic_s()
        kept = payload[: self._limits.refused_kept_bytes_max]
        if self._has_room_for(len(kept)) and self._letters_kept.available(now_s) >= 1:
            self._letters_kept.take(1, now_s)
            booking = Booking.REFUSED
            if len(kept) < size:
                booking = Booking.CUT
                detail = f"{detail}; only the first {len(kept)} of {size} bytes are kept"
            self._add_letter(route, outcome, detail, kept, booking)
        return outcome

    def _has_room_for(self, size: int) -> bool:
        """Return whether one more dead letter of `size` bytes may be kept."""
        limits = self._limits
        return (
            self.letters < limits.dead_letters_max
            and self.letters_bytes + size <= limits.dead_letters_bytes_max
        )

    def _add_letter(
        self, route: Route, outcome: Outcome, detail: str, payload: bytes, booking: Booking
    ) -> None:
        self.letters += 1
        self.letters_bytes += len(payload)
        now_ms = clock.unix_ms()
        letter = dead_letter(
            at_ms=now_ms,
            tenant=route.tenant,
            device=route.device,
            stream=route.stream,
            reason=outcome.name.lower(),
            detail=detail,
            received_at_ms=now_ms,
            booking=booking,
            payload=payload,
        )
        self._spool.current.enclose(letter, len(payload))
        self._spool.touch()

    def _route(self, producer: Producer, topic: bytes) -> Route | Outcome:
        """Find the route of a topic that this connection has not used before."""
        where = address_of_topic(topic)
        if isinstance(where, Outcome):
            return where
        route = self._route_to(producer.identity, where)
        if isinstance(route, Route):
            producer.learn(topic, route, routes_max=self._limits.routes_max)
        return route

    def _route_to(self, identity: Identity, where: Address) -> Route | Outcome:
        if not identity.may_publish_for(where.tenant, where.device):
            return Outcome.NOT_AUTHORISED
        if not self._admits(where.tenant, where.device):
            return Outcome.SUSPENDED
        rule = self._streams.rule(where.stream)
        return Route(
            where,
            raw=rule.raw,
            payload_bytes_max=rule.payload_bytes_max,
            allowance=self._allowances.get(where.tenant, where.device),
            tenant_index=self._tenant_index(where.tenant),
        )

    def _come_home(self, route: Route) -> None:
        """Take over a device whose last message went to another worker, in order (`ingest.order`)."""
        route.home, route.home_word, afters = self._order.come_home(route.tenant, route.device)
        self._spool.current.come_after(afters)

    def readmit(
        self, producer: Producer, names: tuple[str, str, str], payload: bytes, booking: Booking
    ) -> bool:
        """Append a dead letter that is replayed; False when it is refused once more.

        Poison was kept as its envelope: its payload is taken out of it.
        """
        assert booking is not Booking.CUT
        outcome, route = self._judge_submission(producer, names)
        if route is None or outcome is not Outcome.ACCEPTED:
            return False
        if booking is Booking.POISON:
            payload = payload_of(payload)
        outcome, _, encoding, count = self._examine(route, payload)
        if outcome is not Outcome.ACCEPTED:
            return False
        self._append(route, payload, encoding, count)
        return True

    def may_publish(self, producer: Producer, topic: bytes) -> bool:
        """Return whether a will to `topic` could be published."""
        return isinstance(producer.find(topic) or self._route(producer, topic), Route)

    def submit(
        self,
        producer: Producer,
        names: tuple[str, str, str],
        payload: bytes,
        now_s: float,
        *,
        can_pause: bool = False,
        waiter: Waiter | None = None,
        also: Callable[[str, int, int], Sequence[Statement]] | None = None,
        trace: str = "",
    ) -> Submission:
        """Admit one HTTP or WebSocket payload for `names` (tenant, device, stream).

        `can_pause` is whether the caller heeds `pause_s`; for one that does not, a plan that pauses refuses
        while something is owed. `also(group, first index, count)` gives statements for the transaction of its
        group; `waiter` may withdraw the payload if the disk refuses (`OpenGroup.tie`). `trace` is the trace
        context that the records carry on.
        """
        outcome, route = self._judge_submission(producer, names)
        if route is None:
            index = self._tenant_index(producer.identity.tenant)
            self._events.publish_refused(outcome, 1, index)
            return Submission(outcome)
        outcome, detail, encoding, count = self._examine(route, payload)
        # What is refused for its content has cost its bytes and the look at it all the same.
        wait_s, pause_s, over = _charge(
            route.allowance, max(1, count), len(payload), now_s, can_pause=can_pause
        )
        if over:
            outcome, detail = OVER[over], ""
        elif outcome in KEPT:
            outcome = self._keep(route, outcome, detail, payload, must_answer=False)
        if outcome is not Outcome.ACCEPTED:
            self._events.publish_refused(outcome, max(1, count), route.tenant_index)
            return Submission(outcome, detail=detail, retry_after_s=wait_s, pause_s=pause_s)
        current = self._spool.current
        group = f"{self._spool.node}-{self._spool.boot}-{ordinal(current.number)}"
        first = self._append(route, payload, encoding, count)
        if trace:
            current.trace(trace)
        if waiter is not None:
            current.tie(waiter, also(group, first, count) if also is not None else ())
        return Submission(outcome, count, group, first, pause_s=pause_s)

    def _judge_submission(
        self, producer: Producer, names: tuple[str, str, str]
    ) -> tuple[Outcome, Route | None]:
        if self.draining:
            return Outcome.DRAINING, None
        if self._spool.state is State.BROKEN:
            return Outcome.DISK_ERROR, None
        if self._spool.state is State.FULL or self._spool.current.bytes > 4 * self._limits.group_bytes_max:
            return Outcome.SPOOL_FULL, None
        key = "/".join(names).encode()
        found = producer.find(key)
        if found is not None:
            return Outcome.ACCEPTED, found
        where = address(*names)
        route = where if isinstance(where, Outcome) else self._route_to(producer.identity, where)
        if isinstance(route, Outcome):
            return route, None
        producer.learn(key, route, routes_max=self._limits.routes_max)
        return Outcome.ACCEPTED, route


def _charge(
    allowance: Allowance, messages: int, size: int, now_s: float, *, can_pause: bool
) -> tuple[float, float, Over]:
    """Charge a submission as the plan says; return (when to try again, pause, whose limit refuses it)."""
    if allowance.policy is not PAUSE:
        wait_s, over = allowance.charge_whole(messages, size, now_s)
        return wait_s, 0.0, over
    if not can_pause:
        wait_s, over = allowance.owed(now_s)
        if over:
            return wait_s, 0.0, over
    return 0.0, allowance.charge(messages, size, now_s, refuse=False)[1], NOBODY
