"""Who is measured: how each server is set up and started, and what it can do."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from bench.side_by_side import cases
from bench.side_by_side.servers import ROOT, Server, Stub, running, wait_for
from loadtests.node import free_port

COMPILED: Final = ROOT / "build/compiled"
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
HEADWORKS: Final = """\
[node]
name = "bench"
data_dir = "{data}"
workers = {workers}
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{mqtt}"
tls = "off"
auth = ["topic"]
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{mqtts}"
[[listeners]]
protocol = "http"
bind = "127.0.0.1:{http}"
tls = "off"
auth = ["topic"]
[tls]
certificate = "{pki}/server.crt"
key = "{pki}/server.key"
client_ca = "{pki}/ca.crt"
crl = "{pki}/crl.pem"
[accept]
rate_per_s = 1000000
[sink]
{sink}
[limits.default]
messages_per_s = 100000000
device_messages_per_s = 10000000
device_bytes_per_s = 10000000000
[admin]
bind = "127.0.0.1:{admin}"
"""
NULL: Final = 'kind = "null"'
KINESIS: Final = """\
kind = "kinesis"
stream = "bench"
region = "eu-central-1"
endpoint = "http://127.0.0.1:{port}"
shard_bytes_per_s = 1000000000
shard_records_per_s = 1000000
[spool]
bytes_max = {spool_bytes_max}"""
SMALL_SPOOL_BYTES: Final = 33_554_432
"""So that what is accepted is soon what is delivered."""
MOSQUITTO: Final = """\
user root
per_listener_settings true
max_inflight_messages 0
max_queued_messages 0
persistence false
set_tcp_nodelay {nodelay}
log_type error
listener {mqtt} 127.0.0.1
allow_anonymous true
listener {mqtts} 127.0.0.1
cafile {pki}/ca.crt
crlfile {pki}/crl.pem
certfile {pki}/server.crt
keyfile {pki}/server.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
"""
FLASHMQ: Final = """\
allow_anonymous true
thread_count 1
log_file {folder}/flashmq.messages
log_level warning
listen {{
    protocol mqtt
    port {mqtt}
    inet4_bind_address 127.0.0.1
}}
listen {{
    protocol mqtt
    port {mqtts}
    inet4_bind_address 127.0.0.1
    fullchain {pki}/server.crt
    privkey {pki}/server.key
    client_verification_ca_file {pki}/ca.crt
}}
"""
FLUENT_BIT: Final = """\
[SERVICE]
    Flush 0.2
    Log_Level warn
[INPUT]
    Name mqtt
    Listen 127.0.0.1
    Port {mqtt}
[OUTPUT]
    Match *
{output}
"""
FLUENT_BIT_NULL: Final = "    Name null"
FLUENT_BIT_KINESIS: Final = """\
    Name kinesis_streams
    region eu-central-1
    stream bench
    endpoint 127.0.0.1
    port {port}
    tls.ca_file {ca}"""
AMQTT: Final = """\
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:{mqtt}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""


class Place(msgspec.Struct, frozen=True):
    """Where and for what a server is started."""

    folder: Path
    cores: str
    tls: bool
    workers: int
    stub: Stub | None


class Contender(msgspec.Struct, frozen=True):
    """A server by its name, with what it can do."""

    name: str
    can: frozenset[str]
    starts: Callable[[Place], AbstractContextManager[Server]]


@contextlib.contextmanager
def _started(
    place: Place, command: list[str], ports: dict[str, int], environment: Mapping[str, str] = {}
) -> Iterator[Server]:
    """Run a server of one process until the block ends."""
    log = place.folder / "server.log"
    with running(command, place.cores, log, dict(environment)) as process:
        wait_for(ports["mqtt"], process, log)
        yield Server(ports=ports, pids=(process.pid,), stub=place.stub)


def _configured(place: Place, name: str, template: str, **more: object) -> tuple[Path, dict[str, int]]:
    """Write the settings of a server; return their path and the ports that are in it."""
    ports = {speaks: free_port() for speaks in ("mqtt", "mqtts", "http")}
    path = place.folder / name
    path.write_text(template.format(folder=place.folder, pki=place.folder / "pki", **ports, **more))
    return path, ports


@contextlib.contextmanager
def headworks(
    place: Place, *, compiled: bool, spool_bytes_max: int = SMALL_SPOOL_BYTES, sink_port: int = 0
) -> Iterator[Server]:
    """Run a node, from what `make compiled` built or from the sources; its workers are what counts."""
    admin, log, data = free_port(), place.folder / "headworks.log", place.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    port = place.stub.port if place.stub is not None else sink_port
    sink = KINESIS.format(port=port, spool_bytes_max=spool_bytes_max) if port else NULL
    path, ports = _configured(
        place, "headworks.toml", HEADWORKS, data=data, workers=place.workers, sink=sink, admin=admin
    )
    ports["websocket"] = ports["http"]
    environment = dict(CREDENTIALS)
    if compiled:
        environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(COMPILED)}
    command = [sys.executable, "-m", "commands.cli", "serve", "--config", str(path)]
    with running(command, place.cores, log, environment) as process:
        for port in ports.values():
            wait_for(port, process, log)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids = tuple(int(child) for child in children[: place.workers])
        yield Server(ports=ports, pids=pids, admin=admin, stub=place.stub)


@contextlib.contextmanager
def mosquitto(place: Place) -> Iterator[Server]:
    """Run Mosquitto, without persistence: it acknowledges from memory.

    Nagle's algorithm joins its small answers, but holds up its handshakes.
    """
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    nodelay = "true" if place.tls else "false"
    path, ports = _configured(place, "mosquitto.conf", MOSQUITTO, nodelay=nodelay)
    with _started(place, [program, "-c", str(path)], ports) as server:
        yield server


@contextlib.contextmanager
def flashmq(place: Place, *, program: str) -> Iterator[Server]:
    """Run FlashMQ with one thread."""
    path, ports = _configured(place, "flashmq.conf", FLASHMQ)
    with _started(place, [program, "--config-file", str(path)], ports) as server:
        yield server


@contextlib.contextmanager
def fluent_bit(place: Place, *, program: str) -> Iterator[Server]:
    """Run Fluent Bit; to Kinesis it always speaks TLS."""
    output = FLUENT_BIT_NULL
    if place.stub is not None:
        output = FLUENT_BIT_KINESIS.format(port=place.stub.tls_port, ca=place.stub.ca)
    path, ports = _configured(place, "fluent-bit.conf", FLUENT_BIT, output=output)
    with _started(place, [program, "-c", str(path)], ports, CREDENTIALS) as server:
        yield server


@contextlib.contextmanager
def amqtt(place: Place, *, program: str) -> Iterator[Server]:
    """Run aMQTT."""
    path, ports = _configured(place, "amqtt.yaml", AMQTT)
    with _started(place, [program, "-c", str(path)], ports) as server:
        yield server


OTHERS: Final = {
    cases.FLUENT_BIT: (frozenset({"mqtt", "kinesis"}), fluent_bit),
    "flashmq": (frozenset({"mqtt", "mqtts"}), flashmq),
    "amqtt": (frozenset({"mqtt"}), amqtt),
}
"""By name, what they can do and how they are started, where the user has their program."""


def contenders(programs: Mapping[str, str], *, pure: bool) -> list[Contender]:
    """Return who takes part; `programs` are those of `OTHERS` that there are."""
    ours = frozenset({"mqtt", "mqtts", "kinesis", "http", "websocket", "workers"})

    def of_ours(*, compiled: bool) -> Callable[[Place], AbstractContextManager[Server]]:
        return lambda place: headworks(place, compiled=compiled)

    def of_others(name: str) -> Callable[[Place], AbstractContextManager[Server]]:
        return lambda place: OTHERS[name][1](place, program=programs[name])

    both = [
        Contender(cases.MOSQUITTO, frozenset({"mqtt", "mqtts"}), mosquitto),
        Contender(cases.HEADWORKS, ours, of_ours(compiled=True)),
    ]
    if pure:
        both.append(Contender(f"{cases.HEADWORKS} (pure)", ours, of_ours(compiled=False)))
    return both + [Contender(name, OTHERS[name][0], of_others(name)) for name in OTHERS if name in programs]


def programs_in(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the programs that the environment points at: FLUENT_BIT, FLASHMQ, AMQTT."""
    given = {name: environment.get(name.upper().replace("-", "_"), "") for name in OTHERS}
    return {name: program for name, program in given.items() if program}
