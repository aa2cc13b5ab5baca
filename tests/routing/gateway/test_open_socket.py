"""When a socket is pinged and when it ends, as a table of times; handshakes and events as values."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.gateway import routes_file
from routing.gateway.handshake import may_connect
from routing.gateway.open_socket import CLOSES, Ending, Heard, Timing, due
from routing.gateway.proxy_event import route_key, selection
from routing.tenancy.identity import Credential
from runtime.settings_file import SettingsError

TIMING = Timing(ping_s=10, idle_s=100, duration_s=1000, unread_s=5, until_s=None)


def heard(
    frame_s: float = 0, message_s: float = 0, pinged_s: float | None = None, *, held_up: bool = False
) -> Heard:
    return Heard(opened_s=0, frame_s=frame_s, message_s=message_s, pinged_s=pinged_s, held_up=held_up)


@pytest.mark.parametrize(
    ("what", "now_s", "expected"),
    [
        (heard(), 0, (False, 10)),
        (heard(), 9, (False, 1)),
        (heard(), 10, (True, 0)),
        (heard(frame_s=8), 10, (False, 8)),
        (heard(pinged_s=10), 10, (False, 10)),
        (heard(pinged_s=10), 20, (Ending.LOST, 0)),
        (heard(frame_s=99), 100, (Ending.IDLE, 0)),
        (heard(frame_s=95), 99, (False, 1)),
        (heard(frame_s=999, message_s=999), 1000, (Ending.DURATION, 0)),
        (heard(held_up=True), 50, (False, 10)),
        (heard(held_up=True, pinged_s=10), 50, (False, 10)),
        (heard(held_up=True), 500, (False, 10)),
        (heard(held_up=True), 1000, (Ending.DURATION, 0)),
    ],
)
def test_what_is_due(what: Heard, now_s: float, expected: tuple[Ending | bool, float]) -> None:
    assert due(what, TIMING, now_s) == expected


def test_the_end_of_a_credential_comes_before_all_else() -> None:
    timing = msgspec.structs.replace(TIMING, until_s=5.0)
    assert due(heard(), timing, 4.0) == (False, 1.0)
    assert due(heard(held_up=True), timing, 4.0) == (False, 1.0)
    assert due(heard(), timing, 5000.0) == (Ending.EXPIRED, 0.0)


@given(
    frame_s=st.floats(0, 1000),
    message_s=st.floats(0, 1000),
    pinged_s=st.none() | st.floats(0, 1000),
    held_up=st.booleans(),
    now_s=st.floats(0, 2000),
)
def test_nobody_waits_without_end_or_for_nothing(
    frame_s: float, message_s: float, pinged_s: float | None, held_up: bool, now_s: float
) -> None:
    what, wait_s = due(heard(frame_s, message_s, pinged_s, held_up=held_up), TIMING, now_s)
    if what is False:
        assert 0 < wait_s <= TIMING.duration_s
    else:
        assert wait_s == 0


def test_every_ending_has_a_code_and_a_short_reason() -> None:
    assert set(CLOSES) == set(Ending)
    for close in CLOSES.values():
        assert 1000 <= close.code <= 1013
        assert len(close.reason.encode()) <= 123  # RFC 6455, 5.5


@pytest.mark.parametrize(
    ("message", "path", "expected"),
    [
        ('{"action":"a"}', "action", "a"),
        ('{"a":{"b":{"c":"x"}}}', "a.b.c", "x"),
        ('{"a":{"b":1}}', "a.b", None),
        ('{"a":{"b":null}}', "a.b.c", None),
        ('{"a":[]}', "a.b", None),
        ('{"action":"a"', "action", None),
        ("", "action", None),
        ('{"action":"\\ud800"}', "action", None),
        ('{"x":' + "[" * 20_000, "action", None),
        (b'{"action":"a"}', "action", None),
    ],
)
def test_the_selection_of_a_message(message: str | bytes, path: str, expected: str | None) -> None:
    assert selection(message, tuple(path.split("."))) == expected


@given(
    message=st.text(max_size=40), path=st.lists(st.text("ab", min_size=1, max_size=1), min_size=1, max_size=3)
)
def test_no_message_breaks_the_selection(message: str, path: list[str]) -> None:
    selection(message, tuple(path))


@pytest.mark.parametrize("key", ["$connect", "$disconnect", "$default", "other"])
def test_no_client_can_name_a_route_of_the_gateways_own(key: str) -> None:
    message = msgspec.json.encode({"action": key}).decode()
    assert route_key(message, ("action",), {"$connect": 1, "$disconnect": 1, "$default": 1}) == "$default"
    assert route_key(message, ("action",), {"$connect": 1, "$disconnect": 1}) is None


@pytest.mark.parametrize(
    ("origin", "credential", "allowed", "expected"),
    [
        (None, Credential.CERTIFICATE, [], True),
        ("https://a", Credential.CERTIFICATE, [], False),
        ("https://a", Credential.CERTIFICATE, ["https://A"], True),
        ("https://a", Credential.CERTIFICATE, ["*"], True),
        ("https://a", Credential.JWT, [], True),
        ("https://a", Credential.API_KEY, ["https://b"], False),
        ("null", Credential.JWT, ["https://b"], False),
    ],
)
def test_which_pages_may_connect(
    origin: str | None, credential: Credential, allowed: list[str], expected: bool
) -> None:
    assert may_connect(origin, credential, allowed) is expected


TWICE = """routes = [
    { key = "a", upstream = "chat", path = "/a" }, { key = "a", upstream = "chat", path = "/b" },
]"""
FILE = """
[upstreams.chat]
discovery = {{ kind = "static", endpoints = [{{ address = "127.0.0.1:1" }}] }}
[authorizers.keys]
kind = "api_key"
[sockets.chat]
path = "/v1/ws"
authorizers = ["keys"]
{more}
"""


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ('routes = [{ key = "a", upstream = "no", path = "/a" }]', "no upstream no"),
        ('routes = [{ key = "$other", upstream = "chat", path = "/a" }]', "none of"),
        ('routes = [{ key = "a", upstream = "chat", path = "a" }]', "begins with /"),
        (
            TWICE,
            "two routes a",
        ),
        ('routes = []\nselect = "a..b"', "select"),
        ('routes = []\n[authorizers.aws]\nkind = "sigv4"', "signing_keys_file"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, more: str, wrong: str) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(FILE.format(more=more))
    with pytest.raises(SettingsError, match=wrong):
        routes_file.load(path)


def test_a_file_that_makes_sense_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(
        FILE.format(more='routes = [{ key = "$default", upstream = "chat", path = "/a" }]\nselect = "a.b"')
    )
    assert routes_file.load(path).sockets["chat"].select == "a.b"
