"""Settings: what is refused, with its line; and that a node runs at both ends of everything that is taken."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from commands.settings import settings as print_settings
from ingest.app import StartError, check
from ingest.settings import Listener, Settings, Stream, load
from routing.limits.plan import RATE_MIN, Plan
from runtime.settings_file import SettingsError
from tests.end_to_end.test_clients import client_tls
from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect, publish

LISTENER = """[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:1883"
tls = "off"
auth = ["topic"]
"""
HEADS: dict[type[msgspec.Struct], str] = {
    Listener: "[[listeners]]",
    Plan: "[limits.p]",
    Stream: "[[streams]]",
}


class Number(msgspec.Struct, frozen=True):
    """A numeric setting: where it stands, and what it may be."""

    head: str
    name: str
    kind: type
    least: float
    most: float

    def line(self, value: float) -> str:
        return f"{self.name} = {int(value) if self.kind is int else float(value)}"

    def key(self) -> str:
        section = {"[limits.p]": "limits.p", "[[streams]]": "streams[0]"}.get(
            self.head, self.head.strip("[]")
        )
        return f"{section}.{self.name}"


def numbers() -> Iterator[Number]:
    structs = dict(HEADS)
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            structs[field.type] = f"[{field.name}]"
    for struct, head in structs.items():
        for field in msgspec.structs.fields(struct):
            kind, *metas = get_args(field.type) if get_origin(field.type) is Annotated else [field.type]
            if kind in {int, float}:
                bounds: list[Any] = [end for meta in metas for end in (meta.ge, meta.le)]
                assert len(bounds) == 2, f"{head} {field.name} has no bounds"
                assert None not in bounds, f"{head} {field.name} has no least or no most"
                yield Number(head, field.name, kind, *bounds)


NUMBERS = list(numbers())


def write(folder: Path, *lines: str) -> Path:
    path = folder / "headworks.toml"
    path.write_text(LISTENER + "\n".join(lines) + "\n")
    return path


def section(number: Number, value: str) -> list[str]:
    """Return a section with one setting, on the second line after the listener's."""
    required = ['name = "s"'] if number.head == "[[streams]]" else []
    return [number.head, f"{number.name} = {value}", *required]


@pytest.mark.parametrize("number", NUMBERS, ids=Number.key)
def test_a_number_beyond_its_bounds_is_refused_with_its_line(tmp_path: Path, number: Number) -> None:
    step = 1 if number.kind is int else max(1e-6, number.most * 1e-6)
    beyond = [
        number.most + step,
        number.least - min(step, 1e-3) if number.kind is float else number.least - 1,
    ]
    wrong = [str(int(value) if number.kind is int else value) for value in beyond]
    wrong += ['"text"', "true", *(["nan", "inf", "-inf"] if number.kind is float else ["1.5"])]
    for value in wrong:
        path = write(tmp_path, *section(number, value))
        with pytest.raises(SettingsError) as refused:
            load(path)
        assert str(refused.value).startswith(f"{path}:7: {number.key()}: expected"), value


@pytest.mark.parametrize("number", NUMBERS, ids=Number.key)
def test_a_number_at_its_bounds_is_taken(tmp_path: Path, number: Number) -> None:
    for value in (number.least, number.most):
        load(write(tmp_path, *section(number, number.line(value).partition(" = ")[2])))


@pytest.mark.parametrize(
    ("lines", "line", "key"),
    [
        (["[tls]", "handshake_deadline_s = 0"], 7, "tls.handshake_deadline_s"),
        (["[http]", "keep_alive_s = 0"], 7, "http.keep_alive_s"),
        (["[sink]", "record_bytes_max = 1_048_576"], 7, "sink.record_bytes_max"),
        (["[limits.a]", "burst_s = 1", "[limits.b]", "burst_s = 0"], 9, "limits.b.burst_s"),
        (['[limits."big one"]', "", "burst_s = 0"], 8, "limits.big one.burst_s"),
        (["[limits.a]", "messages_per_s = 1e-9"], 7, "limits.a.messages_per_s"),
        (['[[streams]]\nname = "a"\n[[streams]]\nname = "a"'], 9, "streams[1].name"),
        (['[[streams]]\nname = "a//b"'], 7, "streams[0].name"),
        (["[node]", 'data_dir = ""'], 7, "node.data_dir"),
        ([LISTENER], 8, "listeners[1].bind"),
        ([LISTENER.replace("127.0.0.1", "localhost")], 8, "listeners[1].bind"),
        (["[admin]", 'bind = "127.0.0.1:1883"'], 7, "admin.bind"),
        (["[jwt]", 'tenant_claim = ""'], 7, "jwt.tenant_claim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_break_a_node_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], line: int, key: str
) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(SettingsError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}:{line}: {key}: ")


def test_the_defaults_that_are_printed_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_settings()
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith("# required")]
    text = "\n".join(lines).replace("[[listeners]]", "").replace("[[streams]]", "")
    path = tmp_path / "headworks.toml"
    at_the_end = text.index("[limits.default]")
    path.write_text(
        LISTENER + text[: text.index("[log]")] + text[at_the_end : text.index('kind = "telemetry"')]
    )
    assert load(path).limits["default"] == Plan()


def test_a_port_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write(tmp_path, f'[node]\ndata_dir = "{tmp_path}"')
    with pytest.raises(StartError, match=r"listeners\[0\].bind 127.0.0.1:0: name a port"):
        check(load(path, ["listeners.0.bind=127.0.0.1:0"]))


def everything_at(end: str, node: Gateway) -> str:
    """Return the node's settings with every number at one of its bounds."""
    sections: dict[str, list[str]] = {}
    for number in NUMBERS:
        value = number.least if end == "least" else number.most
        if number.name == "workers":
            value = 1
        elif number.least == 0 and number.head == "[limits.p]" and end == "least":
            value = RATE_MIN if number.kind is float else 1
        sections.setdefault(number.head, []).append(number.line(value))
    sections["[[streams]]"].append('name = "s"\nkind = "raw"')
    sections["[limits.default]"] = sections.pop("[limits.p]")
    text = node.config.read_text()
    for head, lines in sections.items():
        added = "\n".join([head, *lines])
        text = text.replace(head, added) if f"{head}\n" in text else f"{text}\n{added}\n"
    return text.replace("drain_deadline_s = 10\n", "").replace("workers = 1\n", "", 1)


def say(node: Gateway) -> bytes:
    """Publish once over MQTT, and return what the node answered before it closed or ten seconds were over."""
    answer = b""
    with socket.create_connection(("127.0.0.1", node.mqtt), 10) as client, contextlib.suppress(OSError):
        client.settimeout(10)
        client.sendall(connect(client="a") + publish(topic=b"dt/a/b/s", payload=b"x"))
        while len(answer) < 8 and (chunk := client.recv(8)):
            answer += chunk
    return answer


@pytest.mark.parametrize("end", ["least", "most"])
def test_a_node_runs_with_every_number_at_one_end(tmp_path: Path, end: str) -> None:
    node = Gateway(tmp_path)
    node.config.write_text(everything_at(end, node))
    node.start()
    try:
        until_s = time.monotonic() + 45  # at the least rate a peer is accepted every ten seconds
        while (answer := say(node)) != b"\x20\x02\x00\x00\x40\x02\x00\x01":
            assert time.monotonic() < until_s, answer
        if end == "most":
            url = f"https://localhost:{node.https}/v1/telemetry/s"
            request = urllib.request.Request(url, b"x", {"Content-Type": "application/octet-stream"})
            context = client_tls(node, node.ca.device("a", "b"))
            with urllib.request.urlopen(request, timeout=10, context=context) as response:  # noqa: S310
                assert response.status == 202
        node.wait_until(lambda: node.status()["ledger"].get("a", {}).get("delivered", 0) >= 1)
        [worker] = node.status()["workers"]
        assert worker["starts"] == 1
        events = {json.loads(line)["event"] for line in node.log.read_text().splitlines()}
        assert not events & {"unexpected", "process_died"}, node.log.read_text()
        assert end == "least" or node.stop() == 0
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill_all()
