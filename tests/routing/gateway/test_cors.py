"""CORS as the Fetch standard has it."""

from __future__ import annotations

import pytest

from routing.gateway import cors
from routing.gateway.routes_file import Cors

PORTAL = "https://portal.example"
NAMED = Cors(origins=[PORTAL], headers=["Content-Type"], expose=["ETag"], credentials=True, max_age_s=60)
ANY = Cors(origins=["*"])


def asks(origin: str) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": "PUT"}


def test_a_preflight_has_an_origin_and_a_method() -> None:
    assert cors.is_preflight("OPTIONS", asks(PORTAL))
    assert not cors.is_preflight("GET", asks(PORTAL))
    assert not cors.is_preflight("OPTIONS", {"Origin": PORTAL})
    assert not cors.is_preflight("OPTIONS", {"Access-Control-Request-Method": "PUT"})


def test_a_page_of_a_named_origin_may_call_and_is_told_how() -> None:
    assert cors.preflight(NAMED, asks(PORTAL), ("GET", "PUT")) == {
        "Access-Control-Allow-Origin": PORTAL,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET, PUT",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Max-Age": "60",
        "Vary": cors.VARY_PREFLIGHT,
    }


@pytest.mark.parametrize(
    "origin",
    ["https://portal.example.evil", "http://portal.example", "https://PORTAL.example", "null", "", "*"],
)
def test_no_other_origin_may(origin: str) -> None:
    assert cors.preflight(NAMED, asks(origin), ("GET",)) is None
    assert cors.actual(NAMED, origin) == {"Vary": "Origin"}


def test_an_answer_says_who_may_read_it_and_to_caches_that_it_depends_on_that() -> None:
    assert cors.actual(NAMED, PORTAL) == {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": PORTAL,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "ETag",
    }
    assert cors.actual(NAMED, None) == {"Vary": "Origin"}


def test_where_every_origin_may_the_answer_is_the_same_for_all() -> None:
    assert cors.actual(ANY, PORTAL) == {"Access-Control-Allow-Origin": "*"}
    assert cors.actual(ANY, None) == {}
    made = cors.preflight(ANY, asks("null"), ("GET",))
    assert made is not None
    assert made["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Headers" not in made
