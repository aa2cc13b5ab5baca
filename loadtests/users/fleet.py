"""The devices of one process: gives shards to users, and lets happen to them what the campaign says."""

from __future__ import annotations

import datetime as dt
import ipaddress
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from locust.env import Environment

from loadtests.certificates import Signer
from loadtests.clients.client import Client
from loadtests.clients.http import HttpClient
from loadtests.clients.mqtt import MqttClient
from loadtests.clients.websocket import WebSocketClient
from loadtests.devices import Device
from loadtests.ledger import Row
from loadtests.plan import ON_THE_FLEET, Group, Plan
from loadtests.target import Target
from loadtests.users.link import Link
from loadtests.users.result import Figures
from loadtests.users.shard import Member, Now, Shard
from loadtests.users.tally import Tally

DEVICES_A_SOURCE: Final = 20_000
"""Connections that come from one address, which has some 28,000 ports."""
FIRST_SOURCE: Final = int(ipaddress.IPv4Address("127.1.0.1"))


class Fleet:
    """All shards of this process. `begin` says when the campaign began; until then nobody measures."""

    def __init__(self, plan: Plan, *, shard_max: int, seed: int) -> None:
        self._plan = plan
        self._shard_max = shard_max
        self._seed = seed
        self._shards: dict[str, list[Shard]] = {}
        self._idle: dict[str, list[Shard]] = {}
        self._began_s: float | None = None
        self._happened = 0
        self._events = sorted(
            (event for event in plan.events if event.what in ON_THE_FLEET), key=lambda e: e.at_s
        )
        self._signer: Signer | None = None
        self._numbers = 0

    def begin(self, now_s: float) -> None:
        """Begin the campaign now, with a fleet that has measured nothing."""
        self._shards = {}
        self._idle = {}
        self._began_s = now_s
        self._happened = 0

    def now(self, now_s: float) -> Now:
        """Return what the campaign says of this moment, after what happens to all was done."""
        at_s = now_s - (self._began_s if self._began_s is not None else now_s)
        while self._happened < len(self._events) and self._events[self._happened].at_s <= at_s:
            event = self._events[self._happened]
            self._happened += 1
            for shard in self._all():
                if not event.groups or shard.group.name in event.groups:
                    if event.what == "drop":
                        shard.drop(now_s)
                    else:
                        shard.out_of_reach(now_s, event.for_s)
        return Now(rate=self._plan.stage_at(at_s).rate, measuring=at_s < self._plan.load_s)

    def take(self, group: Group, environment: Environment, worker: int, target: Target) -> Shard:
        """Return a shard for a user: one that another has left, or a new one."""
        idle = self._idle.get(group.name)
        if idle:
            return idle.pop()
        shards = self._shards.setdefault(group.name, [])
        _, size = group.shards(self._shard_max)
        members = [
            self._member(group, target, worker, f"{len(shards)}-{n}", len(shards) * size + n)
            for n in range(size)
        ]
        shard = Shard(group, members, Tally(environment), self.now)
        shards.append(shard)
        return shard

    def give_back(self, shard: Shard) -> None:
        """Note that the user has left; the devices are there for the next."""
        self._idle.setdefault(shard.group.name, []).append(shard)

    def _member(self, group: Group, target: Target, worker: int, place: str, number: int) -> Member:
        now_s = time.monotonic()
        name = f"{group.name}-{worker}-{place}"
        tenant = group.tenant if group.tenants == 1 else f"{group.tenant}-{number % group.tenants}"
        self._numbers += 1
        seed = random.Random(f"{self._seed} {name}").getrandbits(64)  # noqa: S311  # reproducible
        now_ms = time.time_ns() // 1_000_000
        device = Device(tenant, name, group.habit, seed=seed, now_s=now_s, now_ms=now_ms)
        host, port = target.address_for(group)
        context = None
        if group.tls:
            if self._signer is None:
                self._signer = Signer(
                    Path(target.pki), now=dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC)
                )
            context = self._signer.context(tenant, name, group.credential)
        link = Link(
            (host, port),
            source=self._source(worker) if _is_loopback(host) else None,
            context=context,
            slow=group.read_every_s > 0,
        )
        return Member(device, _client(group, tenant, name, f"{host}:{port}"), link, now_s)

    def _source(self, worker: int) -> str:
        """Return an address of the loopback, which has 16 million: 256 a process."""
        number = 256 * max(0, worker) + self._numbers // DEVICES_A_SOURCE
        return str(ipaddress.IPv4Address(FIRST_SOURCE + number))

    def _all(self) -> Iterator[Shard]:
        for shards in self._shards.values():
            yield from shards

    def flush(self) -> None:
        """Tell Locust what it has not been told yet."""
        for shard in self._all():
            shard.flush()

    @property
    def figures(self) -> Figures:
        """What is so now."""
        total = Figures()
        for shard in self._all():
            seen = shard.figures
            total = total.plus(
                Figures(
                    devices=len(shard.members),
                    up=shard.up,
                    open=0 if shard.group.turned_away or shard.group.payload == "garbage" else shard.open,
                    measuring=len(shard.members) if shard.measuring else 0,
                    lost=seen.lost,
                    turned_away=seen.turned_away,
                    strange=seen.strange,
                    back_longest_s=seen.back_longest_s,
                )
            )
        return total

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield the group and what it says for each device."""
        for shard in self._all():
            for member in shard.members:
                device = member.device
                waiting = [seq for seq, _ in device.waiting]
                flying = [seq for seq, _, _ in device.flying]
                yield (
                    shard.group.name,
                    Row(
                        device.tenant,
                        device.name,
                        device.sent,
                        [*device.unanswered, *flying, *waiting],
                        device.refused,
                        [] if shard.group.once else device.repeated,
                    ),
                )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _client(group: Group, tenant: str, name: str, host: str) -> Client:
    if group.speaks == "mqtt":
        topic = f"dt/{tenant}/{name}/{group.stream}"
        return MqttClient(name, topic, version=group.mqtt_version, keep_alive_s=group.keep_alive_s)
    if group.speaks == "http":
        path = f"/v1/tenants/{tenant}/devices/{name}/telemetry/{group.stream}"
        return HttpClient(name, path, host, list_size=group.list_size)
    addressee = None if group.tls else f"{tenant}/{name}"
    return WebSocketClient(host, group.stream, addressee, list_size=group.list_size)


def as_message(figures: Figures) -> dict[str, Any]:
    """Return figures as a worker sends them to its master."""
    return msgspec.structs.asdict(figures)
