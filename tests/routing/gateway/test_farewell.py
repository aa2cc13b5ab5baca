"""Deprecation (RFC 9745), Sunset (RFC 8594) and their links."""

from __future__ import annotations

import pytest

from routing.gateway.routes_file import Deprecation
from routing.gateway.versions import farewell, unix_of


def test_a_deprecated_route_says_since_when_until_when_and_where_to_read_on() -> None:
    made = farewell(Deprecation(since="2026-06-01", sunset="2027-06-01", link="https://docs.example/v2"))
    assert made.headers == (
        ("Deprecation", "@1780272000"),
        ("Sunset", "Tue, 01 Jun 2027 00:00:00 GMT"),
        ("Link", '<https://docs.example/v2>; rel="deprecation"; type="text/html"'),
        ("Link", '<https://docs.example/v2>; rel="sunset"; type="text/html"'),
    )
    assert not made.is_gone(1_811_807_999)
    assert made.is_gone(1_811_808_000)


def test_without_a_sunset_it_stays() -> None:
    made = farewell(Deprecation(since="2026-06-01"))
    assert made.headers == (("Deprecation", "@1780272000"),)
    assert not made.is_gone(1e12)


@pytest.mark.parametrize(
    ("date", "unix_s"),
    [
        ("1970-01-01", 0),
        ("2026-06-01T02:00:00+02:00", 1_780_272_000),
        ("2026-06-01T00:00:00Z", 1_780_272_000),
    ],
)
def test_dates_are_days_in_utc_or_times_with_an_offset(date: str, unix_s: int) -> None:
    assert unix_of(date) == unix_s


@pytest.mark.parametrize(
    "deprecation",
    [
        Deprecation(since="June"),
        Deprecation(since="2026-06-01", sunset="never"),
        Deprecation(since="2026-06-02", sunset="2026-06-01"),
        Deprecation(since="2026-06-01", link="https://docs.example/>; rel=x"),
        Deprecation(since="2026-06-01", link="https://docs.example/\r\nX: y"),
        Deprecation(since="2026-06-01", link="https://döcs.example"),
    ],
)
def test_what_makes_no_sense_is_an_error(deprecation: Deprecation) -> None:
    with pytest.raises(ValueError, match=r"."):
        farewell(deprecation)
