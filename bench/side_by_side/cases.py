"""What is measured, as data: the loads, and what each figure is to reach."""

from __future__ import annotations

from typing import Final

import msgspec

HEADWORKS: Final = "headworks"
MOSQUITTO: Final = "mosquitto"
FLUENT_BIT: Final = "fluent-bit"
CORES_FOR_TWO_WORKERS: Final = 4
KIB: Final = 1024


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One load, and in `needs` what a server must be able to do to take part.

    `beside` is the case of Mosquitto's that ratios are to, where it cannot take part itself.
    """

    name: str
    title: str
    needs: str
    speaks: str = "mqtt"
    does: str = "publish"
    tls: bool = False
    sink: str = "null"
    connections: int
    devices: int = 0
    window: int = 1
    list: int = 1
    frames: int = 1
    workers: int = 1
    beside: str = ""
    unit: str = "messages"

    @property
    def held(self) -> bool:
        """Whether its connections are idle, and it is about memory."""
        return self.does == "hold"


CASES: Final = (
    Case(
        name="mqtt-64", title="MQTT, 100 connections, 64 in flight", needs="mqtt", connections=100, window=64
    ),
    Case(name="mqtt-1", title="MQTT, 1,000 connections, 1 in flight", needs="mqtt", connections=1000),
    Case(
        name="kinesis-64",
        title="MQTT to Kinesis, 100 connections, 64 in flight",
        needs="kinesis",
        sink="kinesis",
        connections=100,
        window=64,
        beside="mqtt-64",
    ),
    Case(
        name="kinesis-1",
        title="MQTT to Kinesis, 1,000 connections, 1 in flight",
        needs="kinesis",
        sink="kinesis",
        connections=1000,
        beside="mqtt-1",
    ),
    Case(
        name="tls-1",
        title="MQTT over mutual TLS, 2,000 connections, 1 in flight",
        needs="mqtts",
        tls=True,
        connections=2000,
    ),
    Case(
        name="tls-new",
        title="New connections, mutual TLS 1.3, 64 at a time",
        needs="mqtts",
        does="connect",
        tls=True,
        connections=64,
        devices=500,
        unit="connections",
    ),
    Case(
        name="tls-resumed",
        title="The same, resumed by session ticket",
        needs="mqtts",
        does="resume",
        tls=True,
        connections=64,
        devices=500,
        unit="connections",
    ),
    Case(
        name="http-100",
        title="HTTP, 50 connections, lists of 100",
        needs="http",
        speaks="http",
        connections=50,
        list=100,
    ),
    Case(
        name="http-1", title="HTTP, 50 connections, one message", needs="http", speaks="http", connections=50
    ),
    Case(
        name="websocket-64",
        title="MQTT over WebSocket, 100 connections, 64 in flight, a frame each",
        needs="websocket",
        speaks="websocket",
        connections=100,
        window=64,
        frames=64,
    ),
    Case(
        name="websocket-64-in-one",
        title="The same, all 64 in one frame",
        needs="websocket",
        speaks="websocket",
        connections=100,
        window=64,
    ),
    Case(
        name="workers-2",
        title="Two workers, MQTT, 100 connections, 64 in flight",
        needs="workers",
        connections=100,
        window=64,
        workers=2,
        beside="mqtt-64",
    ),
    Case(
        name="idle",
        title="Memory of an idle connection",
        needs="mqtt",
        does="hold",
        connections=2000,
        unit="bytes",
    ),
    Case(
        name="tls-idle",
        title="Memory of an idle connection, mutual TLS",
        needs="mqtts",
        does="hold",
        tls=True,
        connections=1000,
        unit="bytes",
    ),
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure of ours is to reach: by itself, or as a multiple of what `times` is: a case, a server."""

    case: str
    figure: str = "per_s"
    times: tuple[str, str] | None = None
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float) -> bool:
        """Return whether the value is good enough."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


TARGETS: Final = (
    Target(case="mqtt-64", times=("mqtt-64", MOSQUITTO), at_least=2.0),
    Target(case="mqtt-1", times=("mqtt-1", MOSQUITTO), at_least=1.0),
    Target(case="kinesis-64", figure="delivered_per_s", times=("kinesis-64", FLUENT_BIT), at_least=1.0),
    Target(case="kinesis-64", figure="records_a_message", at_most=0.01),
    Target(case="tls-1", times=("tls-1", MOSQUITTO), at_least=0.9),
    Target(case="tls-new", times=("tls-new", MOSQUITTO), at_least=0.9),
    Target(case="tls-resumed", times=("tls-resumed", MOSQUITTO), at_least=0.9),
    Target(case="tls-resumed", times=("tls-new", HEADWORKS), at_least=3.0),
    Target(case="http-100", at_least=250_000),
    Target(case="http-1", at_least=12_000),
    Target(case="websocket-64", times=("mqtt-64", HEADWORKS), at_least=0.8),
    Target(case="workers-2", times=("mqtt-64", HEADWORKS), at_least=1.8),
    Target(case="idle", figure="connection_bytes", at_most=3 * KIB),
    Target(case="tls-idle", figure="connection_bytes", at_most=32 * KIB),
)


def chosen(only: list[str]) -> list[Case]:
    """Return the cases whose names begin with one of `only`; all, if there is none."""
    return [case for case in CASES if not only or any(case.name.startswith(prefix) for prefix in only)]


class Cores(msgspec.Struct, frozen=True):
    """Where a server runs, and where each generator does."""

    server: str
    load: tuple[str, ...]


def cores_for(case: Case, cores: int) -> Cores:
    """Return a core for each worker and one for the generator of each, where there are so many."""
    if case.workers > 1 and cores >= CORES_FOR_TWO_WORKERS:
        return Cores("0,1", ("2", "3"))
    return Cores("0", ("1",))


def targets_for(cores: int) -> list[Target]:
    """Return the targets that a machine with so many cores can tell anything about."""
    return [target for target in TARGETS if target.case != "workers-2" or cores >= CORES_FOR_TWO_WORKERS]
