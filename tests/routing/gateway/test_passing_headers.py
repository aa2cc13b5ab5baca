from __future__ import annotations

import ipaddress

import pytest
from multidict import CIMultiDict

from routing.gateway.headers import HOP_BY_HOP, forwarded_for, given_back, passed_on, rules
from routing.gateway.routes_file import HeaderRules

Lines = list[tuple[str, str]]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_what_is_of_one_connection_goes_no_further(name: str) -> None:
    lines = [(name.title(), "x"), ("X-Other", "y")]
    assert list(passed_on(CIMultiDict(lines)).items()) == [("X-Other", "y")]
    assert list(given_back(CIMultiDict(lines)).items()) == [("X-Other", "y")]


@pytest.mark.parametrize(
    "lines",
    [
        [("Connection", "close, X-Hop")],
        [("Connection", "close"), ("Connection", "x-hop")],
        [("connection", " X-HOP ")],
    ],
)
def test_and_so_does_what_connection_names_in_any_of_its_lines(lines: Lines) -> None:
    headers = CIMultiDict([*lines, ("X-Hop", "1"), ("X-Kept", "2")])
    assert list(passed_on(headers).items()) == [("X-Kept", "2")]
    assert list(given_back(headers).items()) == [("X-Kept", "2")]


@pytest.mark.parametrize("name", ["X-Headworks-Identity", "x_headworks_identity", "X-Headworks_Anything"])
def test_nobody_outside_can_say_what_only_the_gateway_says(name: str) -> None:
    assert not passed_on(CIMultiDict({name: "root"}))


def test_an_upstream_does_not_speak_for_the_gateway() -> None:
    lines = {"X-Headworks-Trace": "1", "Server": "x", "Date": "y", "Content-Length": "3", "ETag": '"1"'}
    assert dict(given_back(CIMultiDict(lines))) == {"ETag": '"1"'}


@pytest.mark.parametrize(
    "name",
    ["Authorization", "X-API-Key", "Host", "Content-Length", "Expect", "Forwarded", "Via", "X-Real-IP"],
)
def test_credentials_and_what_the_gateway_says_anew_end_here(name: str) -> None:
    assert not passed_on(CIMultiDict({name: "x"}))
    assert not passed_on(CIMultiDict({name.replace("-", "_"): "x"}))


def test_lines_keep_their_number_and_order() -> None:
    lines = [("Accept", "a"), ("X-A", "1"), ("Accept", "b"), ("Cookie", "c=1")]
    assert list(passed_on(CIMultiDict(lines)).items()) == lines
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert list(given_back(CIMultiDict(cookies)).items()) == cookies


def test_rules_remove_then_set_then_add() -> None:
    made = rules(HeaderRules(remove=["x-a", "X-B"], set={"X-B": "2", "X-C": "3"}, add={"X-C": "4"}))
    assert made is not None
    headers = CIMultiDict([("X-A", "0"), ("x-a", "0"), ("X-C", "0"), ("X-D", "5")])
    made.apply(headers)
    assert sorted(headers.items()) == [("X-B", "2"), ("X-C", "3"), ("X-C", "4"), ("X-D", "5")]
    assert rules(HeaderRules()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-C: d"),
        ("X-A", "b\0"),
        ("X A", "b"),
        ("X-A:", "b"),
        ("", "b"),
        ("X-Ä", "b"),
        ("X-Headworks-Identity", "b"),
        ("Transfer-Encoding", "chunked"),
        ("connection", "close"),
        ("Content-Length", "5"),
        ("Host", "elsewhere"),
    ],
)
def test_a_rule_cannot_break_a_line_change_the_framing_or_pose_as_the_gateway(name: str, value: str) -> None:
    for written in (HeaderRules(set={name: value}), HeaderRules(add={name: value})):
        with pytest.raises(ValueError, match=r"header|cannot be set"):
            rules(written)


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "given", "expected"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["1.2.3.4"], "198.51.100.7"),
        ("10.1.1.1", ["1.2.3.4"], "1.2.3.4, 10.1.1.1"),
        ("10.1.1.1", ["1.2.3.4, 5.6.7.8", "9.9.9.9"], "1.2.3.4, 5.6.7.8, 9.9.9.9, 10.1.1.1"),
        ("fd00::1", ["1.2.3.4"], "1.2.3.4, fd00::1"),
        ("", ["1.2.3.4"], ""),
    ],
)
def test_only_a_trusted_proxy_is_believed(peer: str, given: list[str], expected: str) -> None:
    assert forwarded_for(peer, given, TRUSTED) == expected
