"""Thousands of devices in one greenlet: one epoll, one heap of what is due, and no thread or task a device.

The epoll is a descriptor itself, and gevent's loop waits for it: an idle shard costs nothing. The loop at the
bottom is the only code that runs once a message; what it does with one is decided in `loadtests.devices` and
`loadtests.clients`.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import math
import select
import time
from collections.abc import Callable, Sequence
from typing import Final

import gevent
import gevent.socket
import msgspec
from gevent import monkey

from loadtests.clients.client import NOT_MQTT_NOT_HTTP, Answer, Client, Gone
from loadtests.devices import Device
from loadtests.payloads import payload_of
from loadtests.plan import Group
from loadtests.users.link import Link, Lost
from loadtests.users.tally import FLUSH_S, Tally

Epoll: Final = monkey.get_original("select", "epoll")
EVENTS_MAX: Final = 512
CONNECT_DEADLINE_S: Final = 15.0
ANSWER_DEADLINE_S: Final = 40.0
BACK_OFF_FIRST_S: Final = 0.5
BACK_OFF_MOST_S: Final = 8.0
GOODBYE_S: Final = 3.0
OPENING_MAX: Final = 100
"""Connections that a shard opens at a time; the others wait for their turn."""
OPENING_AGAIN_S: Final = 0.1
MESSAGES_AT_ONCE: Final = 16
WAIT_MOST_S: Final = 0.2
BREATH_S: Final = 0.0


class Phase(enum.Enum):
    """How far a connection has come."""

    DOWN = enum.auto()
    CONNECTING = enum.auto()
    HANDSHAKING = enum.auto()
    GREETING = enum.auto()
    UP = enum.auto()


class Now(msgspec.Struct, frozen=True):
    """What the campaign says of this moment."""

    rate: float
    measuring: bool


class Figures(msgspec.Struct):
    """Counts of a shard, for ever."""

    back_longest_s: float = 0.0
    turned_away: int = 0
    lost: int = 0
    strange: int = 0


class Member:
    """A device with its client and its connection."""

    __slots__ = (
        "attempt",
        "client",
        "descriptor",
        "device",
        "due_s",
        "interested",
        "link",
        "lost_s",
        "phase",
        "read_s",
        "retry_s",
        "said_s",
        "since_s",
        "tried_s",
    )

    def __init__(self, device: Device, client: Client, link: Link, now_s: float) -> None:
        self.device = device
        self.client = client
        self.link = link
        self.phase = Phase.DOWN
        self.descriptor = -1
        self.interested = 0
        self.due_s = math.inf
        self.retry_s = now_s
        self.attempt = 0
        self.tried_s = math.inf
        """Since when it tries to connect, as a whole."""
        self.since_s = now_s
        """Since when this attempt goes on."""
        self.lost_s = math.inf
        """Since when it has had no answer because its connection was lost."""
        self.said_s = now_s
        self.read_s = now_s
        """A slow reader looks again then."""


class Shard:
    """The devices of one user of Locust; `now_of` asks the campaign."""

    def __init__(
        self, group: Group, members: Sequence[Member], tally: Tally, now_of: Callable[[float], Now]
    ) -> None:
        self.group = group
        self.members = members
        self.figures = Figures()
        self._tally = tally
        self._now_of = now_of
        self._method = {"mqtt": "MQTT", "http": "POST", "websocket": "WS"}[group.speaks]
        self._key = (self._method, group.name)
        self._epoll: select.epoll = Epoll()
        self._of: dict[int, Member] = {}
        self._heap: list[tuple[float, int, Member]] = []
        self._pushes = 0
        self._opening = 0
        self._now = Now(rate=1.0, measuring=True)
        self._drops: list[tuple[float, bool]] = []

    # What the campaign does to it.

    def drop(self, now_s: float) -> None:
        """Reset all connections at once."""
        for member in self.members:
            if member.phase is not Phase.DOWN:
                self._lose(member, "dropped", now_s)

    def out_of_reach(self, now_s: float, for_s: float) -> None:
        """Take the network away for so long."""
        for member in self.members:
            member.device.go_out_of_reach(now_s, for_s)
            self._serve(member, now_s)

    @property
    def up(self) -> int:
        """How many are connected."""
        return sum(1 for member in self.members if member.phase is Phase.UP)

    @property
    def measuring(self) -> bool:
        """Whether its devices go on measuring."""
        return self._now.measuring

    @property
    def open(self) -> int:
        """How many readings are not answered."""
        return sum(len(member.device.waiting) + len(member.device.flying) for member in self.members)

    def flush(self) -> None:
        """Tell Locust what it has not been told yet."""
        self._tally.flush()

    # The loop.

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Drive the devices while `goes_on`, and let them say goodbye."""
        now_s = time.monotonic()
        flush_s = now_s + FLUSH_S
        ends_s = math.inf
        try:
            for member in self.members:
                member.retry_s = max(member.retry_s, now_s)
                self._schedule(member, now_s)
            while True:
                going = goes_on()
                now_s = time.monotonic()
                if not going and ends_s == math.inf:
                    ends_s = now_s + GOODBYE_S
                if not going and (now_s >= ends_s or not self.open):
                    break
                said = self._now_of(now_s)
                self._now = said if going else Now(rate=said.rate, measuring=False)
                self._hear(now_s)
                self._serve_due(now_s)
                if now_s >= flush_s:
                    self._tally.flush()
                    flush_s = now_s + FLUSH_S
                self._wait(min(flush_s, now_s + WAIT_MOST_S))
        finally:
            for member in self.members:
                self._leave(member)
            self._tally.flush()

    def _wait(self, until_s: float) -> None:
        """Wait until a socket has something, or something is due."""
        if self._heap:
            until_s = min(until_s, self._heap[0][0])
        pause_s = until_s - time.monotonic()
        if pause_s <= 0:
            gevent.sleep(BREATH_S)
            return
        with contextlib.suppress(TimeoutError):
            gevent.socket.wait_read(self._epoll.fileno(), timeout=pause_s, timeout_exc=TimeoutError())

    def _hear(self, now_s: float) -> None:
        for descriptor, events in self._epoll.poll(0, EVENTS_MAX):
            member = self._of.get(descriptor)
            if member is None:
                continue
            try:
                self._happened(member, events, now_s)
            except (Lost, Gone) as error:
                self._lose(member, str(error), now_s)
            self._schedule(member, now_s)

    def _happened(self, member: Member, events: int, now_s: float) -> None:
        link = member.link
        if member.phase is Phase.CONNECTING:
            link.connected()
            member.phase = Phase.HANDSHAKING
            self._go_on(member, now_s)
            return
        if events & select.EPOLLOUT and link.owes:
            link.flush()
        if events & ~select.EPOLLOUT:
            if member.phase is Phase.HANDSHAKING:
                link.feed()
                self._go_on(member, now_s)
            elif member.phase is Phase.UP and self.group.read_every_s and now_s < member.read_s:
                self._watch(member, 0)  # a slow reader does not look
                return
            else:
                self._take(member, link.read(), now_s)
        self._watch(member, select.EPOLLIN | (select.EPOLLOUT if link.owes else 0))

    def _go_on(self, member: Member, now_s: float) -> None:
        """Go on with the handshake, and greet once it is done."""
        link = member.link
        if link.handshake():
            member.phase = Phase.GREETING
            greeting = member.client.open()
            if greeting:
                link.write(greeting)
            self._take(member, link.decrypted(), now_s)
        self._watch(member, select.EPOLLIN | (select.EPOLLOUT if link.owes else 0))

    def _take(self, member: Member, data: bytes, now_s: float) -> None:
        """Hear what came, book the answers, and say what is to be said."""
        client = member.client
        answers = client.hear(data) if data else []
        if member.phase is Phase.GREETING and client.ready:
            member.phase = Phase.UP
            member.attempt = 0
            self._opening -= 1
            if member.tried_s < math.inf:
                self._tally.took((self._method, f"{self.group.name} connect"), now_s - member.tried_s, 0)
            member.tried_s = math.inf
        if answers:
            self._book(member, answers, now_s)
        if member.phase is Phase.UP:
            if self.group.read_every_s:
                member.read_s = now_s + self.group.read_every_s
            reply = client.reply()
            if reply:
                member.link.write(reply)
            if member.device.waiting:
                self._say(member, now_s)

    def _book(self, member: Member, answers: Sequence[Answer], now_s: float) -> None:
        device = member.device
        for answer in answers:
            waited_s = device.answered(answer.seqs, answer.reason, now_s)
            if waited_s < 0:
                self.figures.strange += 1
            elif answer.reason:
                self._tally.failed(self._key, answer.reason)
            else:
                self._tally.took(self._key, waited_s, 0)
                if member.lost_s < math.inf:
                    back_s = now_s - member.lost_s
                    member.lost_s = math.inf
                    self.figures.back_longest_s = max(self.figures.back_longest_s, back_s)
                    self._tally.took((self._method, f"{self.group.name} back"), back_s, 0)

    def _say(self, member: Member, now_s: float) -> None:
        """Send what the device has to say, as much as it may."""
        group, device, client = self.group, member.device, member.client
        if group.payload == "garbage":
            device.waiting.clear()
            member.link.write(NOT_MQTT_NOT_HTTP)
            return
        parts: list[bytes] = []
        for _ in range(MESSAGES_AT_ONCE):
            count = client.next_count()
            if not count or (len(device.waiting) < count and self._now.measuring):
                break
            readings = device.take(count, now_s)
            if not readings:
                break
            odd = group.payload != "telemetry" and device.chance() < group.payload_share
            parts.append(
                client.publish(readings, payload_of(group.payload if odd else "telemetry", readings))
            )
        if parts:
            member.said_s = now_s
            member.link.write(b"".join(parts))

    # What is due.

    def _serve_due(self, now_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, _, member = heapq.heappop(heap)
            if due_s == member.due_s:
                member.due_s = math.inf
                self._serve(member, now_s)

    def _serve(self, member: Member, now_s: float) -> None:
        device = member.device
        device.step(now_s, rate=self._now.rate, measuring=self._now.measuring)
        try:
            if member.phase is Phase.DOWN:
                if device.in_reach and now_s >= member.retry_s:
                    self._connect(member, now_s)
            elif not device.in_reach:
                self._lose(member, "", now_s)
            elif member.phase is Phase.UP:
                self._keep_up(member, now_s)
            elif now_s >= member.since_s + CONNECT_DEADLINE_S:
                self._lose(member, "no connection in time", now_s)
            if member.phase is not Phase.DOWN:
                self._watch_slow(member, now_s)
        except (Lost, Gone) as error:
            self._lose(member, str(error), now_s)
        self._schedule(member, now_s)

    def _keep_up(self, member: Member, now_s: float) -> None:
        """Say what has come up on an open connection, or a ping."""
        device = member.device
        if device.flying and now_s >= device.flying[0][2] + ANSWER_DEADLINE_S + self.group.read_every_s:
            raise Lost("no answer in time")
        if device.waiting:
            self._say(member, now_s)
        elif now_s >= member.said_s + self.group.keep_alive_s / 2:
            member.said_s = now_s
            ping = member.client.ping()
            if ping:
                member.link.write(ping)
        self._watch(
            member,
            (member.interested & select.EPOLLIN) | (select.EPOLLOUT if member.link.owes else 0),
        )

    def _watch_slow(self, member: Member, now_s: float) -> None:
        if self.group.read_every_s and member.phase is Phase.UP and now_s >= member.read_s:
            self._watch(member, select.EPOLLIN | (select.EPOLLOUT if member.link.owes else 0))

    def _schedule(self, member: Member, now_s: float) -> None:
        """Be there again when something is due for the device."""
        device = member.device
        due_s = device.due_s if self._now.measuring or device.due_s == math.inf else now_s + 1.0
        if member.phase is Phase.DOWN:
            if device.in_reach:
                due_s = min(due_s, max(member.retry_s, now_s + 0.001))
        elif member.phase is Phase.UP:
            due_s = min(due_s, member.said_s + self.group.keep_alive_s / 2)
            if device.flying:
                due_s = min(due_s, device.flying[0][2] + ANSWER_DEADLINE_S + self.group.read_every_s)
            if self.group.read_every_s and member.read_s > now_s:
                due_s = min(due_s, member.read_s)
        else:
            due_s = min(due_s, member.since_s + CONNECT_DEADLINE_S)
        due_s = max(due_s, now_s + 0.001)
        if due_s != member.due_s:
            member.due_s = due_s
            self._pushes += 1
            heapq.heappush(self._heap, (due_s, self._pushes, member))

    # Connections.

    def _connect(self, member: Member, now_s: float) -> None:
        if self._opening >= OPENING_MAX:
            member.retry_s = now_s + OPENING_AGAIN_S * (1 + member.device.chance())
            return
        if member.tried_s == math.inf:
            member.tried_s = now_s
        member.since_s = member.said_s = now_s
        self._opening += 1
        member.phase = Phase.CONNECTING
        member.descriptor = member.link.connect()
        self._of[member.descriptor] = member
        member.interested = select.EPOLLOUT
        self._epoll.register(member.descriptor, select.EPOLLOUT)

    def _watch(self, member: Member, events: int) -> None:
        if events != member.interested and member.descriptor >= 0:
            member.interested = events
            self._epoll.modify(member.descriptor, events)

    def _lose(self, member: Member, why: str, now_s: float) -> None:
        """Note that a connection is lost, or was not to be had; it comes back after a while."""
        was_up = member.phase is Phase.UP
        self._close(member, reset=True)
        if was_up:
            self.figures.lost += 1
            if member.device.in_reach:
                member.lost_s = min(member.lost_s, now_s)
        elif self.group.turned_away:
            self.figures.turned_away += 1
        if why:
            self._tally.failed((self._method, f"{self.group.name} connect"), why)
        member.device.again()
        member.retry_s = now_s + member.device.back_off_s(member.attempt, BACK_OFF_FIRST_S, BACK_OFF_MOST_S)
        member.attempt += 1

    def _close(self, member: Member, *, reset: bool) -> None:
        if member.phase is Phase.DOWN:
            return
        if member.phase is not Phase.UP:
            self._opening -= 1
        if member.descriptor >= 0:
            self._of.pop(member.descriptor, None)
            self._epoll.unregister(member.descriptor)
            member.descriptor = -1
        member.link.close(reset=reset)
        member.phase = Phase.DOWN

    def _leave(self, member: Member) -> None:
        """Say goodbye."""
        if member.phase is Phase.UP:
            goodbye = member.client.close()
            with contextlib.suppress(Lost):
                if goodbye:
                    member.link.write(goodbye)
        self._close(member, reset=False)
        member.device.again()
