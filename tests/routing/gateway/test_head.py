from __future__ import annotations

import pytest
from aiohttp.http import HttpVersion
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod, InvalidURLError, LineTooLong
from aiohttp.test_utils import make_mocked_request

from routing.gateway import head
from routing.gateway.malformed import named
from routing.gateway.refused import Refused


def refused(*, path: str = "/", minor: int = 1, major: int = 1, **headers: str) -> str:
    request = make_mocked_request(
        "GET",
        path,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        version=HttpVersion(major, minor),
    )
    try:
        head.check(request, 1000)
        head.target(request)
    except Refused as error:
        return error.slug
    return ""


@pytest.mark.parametrize("host", ["x", "x.example:8443", "127.0.0.1", "[::1]:80", "a_b"])
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host: str) -> None:
    assert not refused(Host=host)


@pytest.mark.parametrize("host", ["", "a b", "a,b", "a/b", "a@b", "a:b", "a:123456", "[x]", "a%41", "a\n"])
def test_another_host_is_refused(host: str) -> None:
    assert refused(Host=host) == "bad-host"


def test_headers_count_together() -> None:
    assert not refused(Host="x", A="y" * 900)
    assert refused(Host="x", A="y" * 500, B="y" * 500) == "headers-too-large"


def test_only_chunked_is_a_transfer_coding_and_not_in_http_1_0() -> None:
    assert not refused(Host="x", Transfer_Encoding=" Chunked")
    assert refused(Host="x", Transfer_Encoding="gzip, chunked") == "unknown-transfer-coding"
    assert refused(Transfer_Encoding="chunked", minor=0) == "bad-framing"


def test_before_http_1_0_there_is_nothing() -> None:
    assert not refused(minor=0)
    assert refused(major=0, minor=9) == "unknown-http-version"


def test_a_url_must_be_of_the_host() -> None:
    assert not refused(Host="X", path="http://x/a")
    assert not refused(path="http://x/a", minor=0)
    assert refused(Host="x", path="http://y/a") == "bad-host"
    assert refused(Host="x", path="*") == "bad-target"
    assert refused(Host="x", path="/a#b") == "bad-target"


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (LineTooLong(b"secret", 10), (431, "headers-too-large")),
        (BadHttpMessage("Too many headers received"), (431, "headers-too-large")),
        (InvalidURLError("Invalid char in url path:\n  secret"), (400, "bad-target")),
        (BadHttpMethod("secret"), (400, "bad-request-line")),
        (BadHttpMessage("Duplicate Content-Length:\n\n  b'secret'"), (400, "bad-framing")),
        (BadHttpMessage("Invalid character in chunk size:\n\n  b'secret'"), (400, "bad-framing")),
        (BadHttpMessage("Invalid header token:\n\n  b'secret'"), (400, "bad-header")),
        (BadHttpMessage("Invalid HTTP header: b'secret'"), (400, "bad-header")),
        (BadHttpMessage("Duplicate 'Host' header found."), (400, "bad-host")),
        (BadHttpMessage("secret"), (400, "bad-request")),
    ],
)
def test_what_does_not_parse_has_a_name_and_is_not_repeated(
    error: BadHttpMessage, answer: tuple[int, str]
) -> None:
    status, slug, detail = named(error, error.message)
    assert (status, slug) == answer
    assert detail
    assert "secret" not in detail
