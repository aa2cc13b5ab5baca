from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from routing.gateway.cache import (
    Cache,
    Kept,
    etag_of,
    is_unchanged,
    key_of,
    lifetime_s,
    may_look,
)

Lines = list[tuple[str, str]]


def kept(body: bytes = b"x", until_s: float = 10.0) -> Kept:
    return Kept(200, (("ETag", '"1"'),), body, '"1"', 0.0, until_s)


def cache(bytes_max: int = 100_000, entries_max: int = 3) -> Cache:
    return Cache(bytes_max=bytes_max, entries_max=entries_max, entry_bytes_max=10_000)


def test_an_answer_is_given_again_until_its_time_is_over() -> None:
    each = cache()
    each.put(("a",), kept())
    assert each.get(("a",), 9.9) == kept()
    assert each.get(("a",), 10.0) is None
    assert (len(each), each.bytes) == (0, 0)


def test_the_least_used_goes_first() -> None:
    each = cache()
    for name in "abc":
        each.put((name,), kept())
    each.get(("a",), 0.0)
    each.put(("d",), kept())
    assert [name for name in "abcd" if each.get((name,), 0.0)] == ["a", "c", "d"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2000)), max_size=40))
def test_bytes_are_counted_and_never_too_many(puts: list[tuple[str, int]]) -> None:
    each = cache(bytes_max=4000, entries_max=5)
    stored: dict[str, Kept] = {}
    for name, size in puts:
        stored[name] = kept(b"x" * size)
        each.put((name,), stored[name])
        assert each.bytes <= 4000
        left = [found for at in stored if (found := each.get((at,), 0.0)) is not None]
        assert each.bytes == sum(found.cost() for found in left)
        assert len(each) == len(left) <= 5


def test_what_is_larger_than_all_of_it_is_not_kept_and_nothing_is_with_no_entries() -> None:
    each = cache(bytes_max=600)
    each.put(("a",), kept())
    each.put(("a",), kept(b"x" * 600))
    assert len(each) == 0
    none = cache(entries_max=0)
    none.put(("a",), kept())
    assert len(none) == 0


async def test_one_asks_and_the_others_get_its_answer_which_is_kept() -> None:
    each = cache()
    assert each.flight(("a",)) is None
    flight = each.lead(("a",))
    assert each.flight(("a",)) is flight
    each.land(("a",), flight, kept())
    assert await flight == each.get(("a",), 0.0) == kept()
    assert each.flight(("a",)) is None
    each.land(("a",), flight, None)
    assert each.get(("a",), 0.0) == kept()


async def test_an_answer_of_the_routes_before_is_given_to_who_waited_and_not_kept() -> None:
    each = cache()
    old = each.lead(("a",))
    each.clear()
    assert each.flight(("a",)) is None
    new = each.lead(("a",))
    each.land(("a",), old, kept(b"old"))
    assert await old == kept(b"old")
    assert each.get(("a",), 0.0) is None
    assert each.flight(("a",)) is new


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], 60),
        ([("Cache-Control", "max-age=5")], 5),
        ([("Cache-Control", 'MAX-AGE = "5"')], 5),
        ([("Cache-Control", "max-age=5, s-maxage=7")], 7),
        ([("Cache-Control", "public, max-age=99999999999999999999")], 60),
        ([("Cache-Control", "max-age=x")], 0),
        ([("Cache-Control", "max-age=\u0665")], 0),
        ([("Cache-Control", "max-age=-1")], 0),
        ([("Cache-Control", "max-age=30"), ("Age", "10")], 20),
        ([("Cache-Control", "max-age=30"), ("Age", "40")], 0),
        ([("Cache-Control", "no-store")], 0),
        ([("Cache-Control", "private")], 0),
        ([("Cache-Control", 'private="set-cookie"')], 0),
        ([("Cache-Control", "no-cache")], 0),
        ([("Cache-Control", "max-age=30"), ("Cache-Control", "no-store")], 0),
        ([("Set-Cookie", "a=1")], 0),
        ([("Vary", "Accept-Language")], 60),
        ([("Vary", "accept-language,")], 60),
        ([("Vary", "Accept-Encoding")], 0),
        ([("Vary", "Accept-Language"), ("Vary", "Cookie")], 0),
        ([("Vary", "*")], 0),
        ([("Expires", "Thu, 01 Jan 2026 00:00:30 GMT"), ("Date", "Thu, 01 Jan 2026 00:00:00 GMT")], 30),
        ([("Expires", "Thu, 01 Jan 2026 00:00:00 GMT"), ("Date", "Thu, 01 Jan 2026 00:00:30 GMT")], 0),
        ([("Expires", "0"), ("Date", "Thu, 01 Jan 2026 00:00:30 GMT")], 0),
        ([("Expires", "Thu, 01 Jan 2026 00:00:30 GMT")], 0),
        ([("Expires", "0"), ("Cache-Control", "max-age=5")], 5),
    ],
)
def test_an_answer_is_kept_as_long_as_it_says_and_the_route_allows(lines: Lines, seconds: float) -> None:
    assert lifetime_s(200, CIMultiDict(lines), 60.0, ["Accept-Language"]) == seconds


@pytest.mark.parametrize("status", [201, 203, 204, 206, 301, 304, 404, 500])
def test_only_200_is_kept(status: int) -> None:
    assert lifetime_s(status, CIMultiDict(), 60.0, []) == 0


@pytest.mark.parametrize(
    ("lines", "look"),
    [
        ([], True),
        ([("Cache-Control", "no-cache")], False),
        ([("Cache-Control", "max-age=0"), ("Cache-Control", "No-Store")], False),
        ([("Range", "bytes=0-1")], False),
    ],
)
def test_a_request_may_want_a_fresh_answer(lines: Lines, *, look: bool) -> None:
    assert may_look(CIMultiDict(lines)) is look


def test_answers_differ_by_owner_and_by_every_line_of_what_they_vary_on() -> None:
    def key(owner: str, *lines: tuple[str, str]) -> tuple[str, ...]:
        return key_of("r", "/a", owner, ["Accept-Language"], CIMultiDict(lines))

    german, french = ("Accept-Language", "de"), ("accept-language", "fr")
    keys = [key("x"), key("y"), key("x", german), key("x", french), key("x", german, french)]
    assert len(set(keys)) == 5
    assert key("x", german, french) == key("x", ("Accept-Language", "de, fr"))


@pytest.mark.parametrize(
    ("wanted", "etag", "unchanged"),
    [
        ('"1"', '"1"', True),
        ('W/"1"', '"1"', True),
        ('"1"', 'W/"1"', True),
        ('"0", "1"', '"1"', True),
        ("*", '"1"', True),
        ('"2"', '"1"', False),
        ("1", '"1"', False),
        ("", '"1"', False),
        (None, '"1"', False),
    ],
)
def test_who_has_the_answer_is_told_so(wanted: str | None, etag: str, *, unchanged: bool) -> None:
    assert is_unchanged(wanted, etag) is unchanged


def test_the_validator_is_of_the_body() -> None:
    assert etag_of(b"a") == etag_of(b"a") != etag_of(b"b")
