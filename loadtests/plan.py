"""A campaign as data: who is in the fleet, what happens when, and what is promised. A TOML file each.

An unknown or wrong field is an error that names the file, the line and the field.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from loadtests.devices import Habit
from loadtests.payloads import Kind

FOLDER: Final = Path(__file__).with_name("campaigns")
TABLES: Final = ("groups", "tenants", "stages", "events")
SHARDS_MIN: Final = 10
"""A group comes and goes in so many steps at least, if it has so many devices."""

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]{0,31}$")]
Speaks = Literal["mqtt", "websocket", "http", "api"]
Credential = Literal["good", "expired", "foreign", "revoked", "none"]
What = Literal["drop", "out_of_reach", "sink_outage", "kill_worker", "kill_node", "reload_certificates"]
ON_THE_FLEET: Final = frozenset({"drop", "out_of_reach"})
"""What happens to devices; all else happens to the node."""


class PlanError(Exception):
    """A campaign cannot be read; the text says where and why."""


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices of one kind."""

    name: Name
    speaks: Speaks
    devices: Count
    tenant: Name = "acme"
    tenants: Count = 1
    """More than one: they are named `tenant-0`, `tenant-1`, and so on."""
    stream: str = "environment"
    tls: bool = False
    credential: Credential = "good"
    mqtt_version: Literal[4, 5] = 5
    keep_alive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    period_s: Positive = 5.0
    jitter: Share = 0.5
    clock_error_s: NotNegative = 2.0
    drift_ppm: NotNegative = 100.0
    offline_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    offline_s: Positive = 5.0
    backlog_max: Count = 10_000
    window: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 32
    """Readings that it may be owed an answer for; MQTT 5 allows as many as the node's `receive_maximum`."""
    list_size: Count = 1
    """Readings in a message (HTTP and WebSocket)."""
    payload: Kind = "telemetry"
    payload_share: Share = 1.0
    """Of its messages that are of this kind; the others are telemetry."""
    read_every_s: NotNegative = 0.0
    """Above 0 it is a slow reader, which looks for answers only so often."""
    refused: list[str] = []
    """What its messages may be refused for, by the names that the gateway has for it."""
    judged: bool = True
    """Whether the promised latency holds for it."""
    once: bool = False
    """What it sends again comes once all the same (HTTP, by its `Idempotency-Key`)."""
    turned_away: bool = False
    """It must never get in."""

    @property
    def habit(self) -> Habit:
        """Return how its devices behave."""
        return Habit(
            period_s=self.period_s,
            jitter=self.jitter,
            clock_error_s=self.clock_error_s,
            drift_ppm=self.drift_ppm,
            offline_share=self.offline_share,
            offline_s=self.offline_s,
            backlog_max=self.backlog_max,
            window=max(self.window, self.list_size),
        )

    def shards(self, shard_max: int) -> tuple[int, int]:
        """Return (how many shards, how many devices each has), of at most about `shard_max`."""
        size = max(1, min(shard_max, self.devices // SHARDS_MIN))
        count = max(1, round(self.devices / size))
        return count, max(1, round(self.devices / count))


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant on a plan of its own."""

    name: Name
    plan: str


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the fleet is there, and how often it measures, up to a moment."""

    until_s: Positive
    share: Share = 1.0
    rate: Positive = 1.0


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happens at a moment."""

    at_s: NotNegative
    what: What
    for_s: NotNegative = 0.0
    groups: list[str] = []
    """Whom it happens to; nobody named is everybody."""
    worker: Annotated[int, msgspec.Meta(ge=0)] = 0


class NodeWishes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign asks of a node that is started for it."""

    workers: Count = 2
    settings: str = ""
    """Further TOML."""


class Promise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold. Order is always promised, and that nothing comes which nobody sent."""

    p99_ms: Positive
    """Of the acknowledgements of the groups that are judged."""
    lost_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    duplicates_max: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Of what devices sent again; None is as many as that. What was sent once never comes twice."""
    back_within_s: Positive | None = None
    """The longest that a device waited from a lost connection to its next acknowledgement."""
    handshakes_failed: list[str] = []
    """The names under which the gateway must count handshakes that failed."""
    gateway_mb_max: Positive | None = None
    """What all processes of the gateway may have grown by."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A campaign."""

    what: str
    load_s: Positive
    """For so long devices measure."""
    settle_s: Positive = 30.0
    """Within so long after that all is answered and delivered."""
    promise: Promise
    groups: Annotated[list[Group], msgspec.Meta(min_length=1)]
    node: NodeWishes = NodeWishes()
    tenants: list[Tenant] = []
    stages: list[Stage] = []
    events: list[Event] = []

    def stage_at(self, at_s: float) -> Stage:
        """Return the stage of a moment; the last one holds for ever."""
        everybody = Stage(until_s=self.load_s)
        return next(
            (stage for stage in self.stages if at_s < stage.until_s), (self.stages or [everybody])[-1]
        )

    @property
    def devices(self) -> int:
        """Return how many devices there are, without callers of the API."""
        return sum(group.devices for group in self.groups if group.speaks != "api")

    def scaled(self, *, devices: int | None, load_s: float | None, period_s: float | None) -> Plan:
        """Return the same with as many devices, over so long, and with such a period."""
        groups = self.groups
        if devices is not None:
            factor = devices / self.devices
            groups = [
                group
                if group.speaks == "api"
                else msgspec.structs.replace(group, devices=max(1, round(group.devices * factor)))
                for group in groups
            ]
        if period_s is not None:
            groups = [msgspec.structs.replace(group, period_s=period_s) for group in groups]
        slower = 1.0 if load_s is None else load_s / self.load_s
        return msgspec.structs.replace(
            self,
            load_s=self.load_s * slower,
            groups=groups,
            stages=[msgspec.structs.replace(stage, until_s=stage.until_s * slower) for stage in self.stages],
            events=[
                msgspec.structs.replace(event, at_s=event.at_s * slower, for_s=event.for_s * slower)
                for event in self.events
            ],
        )


def names() -> list[str]:
    """Return the campaigns that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def path_of(name: str) -> Path:
    """Return the file of a campaign, which is named by its name or by a path; raises `PlanError`."""
    path = Path(name) if name.endswith((".toml", ".json")) else FOLDER / f"{name}.toml"
    if not path.exists():
        near = difflib.get_close_matches(name, names(), 1)
        raise PlanError(
            f"there is no campaign {name}; did you mean {near[0]}?"
            if near
            else f"there is no campaign {name}: {', '.join(names())}"
        )
    return path


def load(name: str) -> Plan:
    """Return a campaign by its name or path; raises `PlanError`."""
    path = path_of(name)
    if path.suffix == ".json":
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    return decode(path.read_text(), path.name)


SectionT = TypeVar("SectionT", bound=msgspec.Struct)


def decode(text: str, file: str) -> Plan:
    """Return the campaign that `text` describes; raises `PlanError`."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{file}: {error}") from error
    source = _Source(text, file)
    entries: dict[str, list[msgspec.Struct]] = {}
    for name, kind in (("groups", Group), ("tenants", Tenant), ("stages", Stage), ("events", Event)):
        found = tables.get(name, [])
        if not isinstance(found, list):
            raise PlanError(source.place(name, None, f"write [[{name}]]"))
        entries[name] = [source.convert(entry, kind, name, index) for index, entry in enumerate(found)]
    for name, one in (("promise", Promise), ("node", NodeWishes)):
        if name in tables:
            source.convert(tables[name], one, name, 0)
    plan = source.convert(tables, Plan, None, 0)
    _check(plan, source)
    return plan


def _check(plan: Plan, source: _Source) -> None:
    """Refuse what each part may say, and all together may not."""
    known = [group.name for group in plan.groups]
    for index, group in enumerate(plan.groups):
        if group.name in known[:index]:
            raise PlanError(source.place("groups", index, f"there are two groups {group.name}", "name"))
        if group.credential != "good" and not group.tls:
            raise PlanError(
                source.place("groups", index, "a credential other than good needs tls", "credential")
            )
    for index, event in enumerate(plan.events):
        if unknown := sorted({*event.groups} - {*known}):
            raise PlanError(source.place("events", index, f"there is no group {unknown[0]}", "groups"))
        if event.at_s > plan.load_s:
            raise PlanError(source.place("events", index, "it happens after the load", "at_s"))
    for index in range(1, len(plan.stages)):
        if plan.stages[index].until_s <= plan.stages[index - 1].until_s:
            raise PlanError(source.place("stages", index, "it ends before the one before", "until_s"))


class _Source:
    """Finds the line of what is wrong."""

    def __init__(self, text: str, file: str) -> None:
        self._lines = text.splitlines()
        self._file = file

    def convert(
        self, table: Mapping[str, Any], kind: type[SectionT], name: str | None, index: int
    ) -> SectionT:
        """Return a table as what it must be."""
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            said = str(error)
            unknown = re.search(r"unknown field `([^`]*)`", said)
            at = re.search(r"at `\$\.?([a-z0-9_]*)", said)
            field = unknown[1] if unknown else at[1] if at else ""
            words = said.partition(" - at ")[0]
            if unknown:
                fields = [each.name for each in msgspec.structs.fields(kind)]
                near = difflib.get_close_matches(field, fields, 1)
                words = f"there is no field {field}" + (f"; did you mean {near[0]}?" if near else "")
            elif field:
                words = f"{field}: {words}"
            raise PlanError(self.place(name, index, words, field)) from error

    def place(self, table: str | None, index: int | None, words: str, field: str = "") -> str:
        """Return `words` with the file and the line that they are about."""
        start = 0
        if table is not None:
            heads = [n for n, line in enumerate(self._lines) if re.match(rf"\s*\[+{table}\]+", line)]
            start = heads[min(index or 0, len(heads) - 1)] if heads else 0
        line = start
        for number in range(start + (table is not None), len(self._lines)):
            if re.match(rf"\s*{re.escape(field)}\s*=", self._lines[number]) and field:
                line = number
                break
            if table is not None and self._lines[number].lstrip().startswith("["):
                break
        where = f" in {table}" if table is not None else ""
        return f"{self._file}, line {line + 1}{where}: {words}"
