from __future__ import annotations

import time
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from multidict import CIMultiDict, MultiDict

from routing.gateway import validation
from routing.gateway.documents import DocumentError, Documents, parse
from routing.gateway.routes_file import Route
from routing.gateway.validation import Validation
from tests.support.api_documents import CREATE, DOCUMENTS, FILES, LIST, OWN, ROUTES, TELEMETRY

VALIDATION = Validation(ROUTES, DOCUMENTS)
JSON = "application/json"


def problems_of_body(body: Any, content_type: str = JSON) -> list[dict[str, str]]:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return VALIDATION.validate(CREATE, {"tenant": "acme"}, MultiDict(), content_type, raw)


def problems_of_query(*query: tuple[str, str], route: Route = LIST) -> list[dict[str, str]]:
    return VALIDATION.validate(route, {"tenant": "acme"}, MultiDict(query), "", b"")


def test_a_request_that_is_what_its_operation_says_has_no_problems() -> None:
    assert problems_of_body({"name": "pump-1", "status": "active", "tags": ["a"], "limit": None}) == []


@pytest.mark.parametrize(
    ("body", "where", "problem"),
    [
        ({}, "body", "name is required"),
        ({"name": 1}, "body.name", "must be string"),
        ({"name": "Pump"}, "body.name", "does not match ^[a-z0-9-]{1,32}$"),
        ({"name": "p", "status": "gone"}, "body.status", "must be one of active, suspended"),
        ({"name": "p", "tags": ["a", "too-long-for-it"]}, "body.tags[1]", "is longer than 8"),
        ({"name": "p", "limit": 1}, "body.limit", "must be at least 3"),
        ({"name": "p", "nmae": 1, "x": 2}, "body", "there is no nmae or x"),
        ([], "body", "must be object"),
        (b"{", "body", "is not JSON"),
        (b"\xff", "body", "is not JSON"),
        (b'"\\ud800"', "body", "is not JSON"),
        (b"1e999", "body", "is not JSON"),
        (b"", "body", "is required"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_with_its_place(body: Any, where: str, problem: str) -> None:
    assert problems_of_body(body) == [{"where": where, "problem": problem}]


def test_media_types_with_parameters_and_in_capitals_are_the_same() -> None:
    assert problems_of_body({"name": "p"}, "Application/JSON; charset=utf-8") == []
    assert problems_of_body(b"anything", "text/csv") == []


def test_a_media_type_that_the_operation_does_not_take_is_unsupported() -> None:
    said = "the body must be application/json or text/csv"
    assert VALIDATION.unsupported(CREATE, "text/plain", b"x") == said
    assert VALIDATION.unsupported(CREATE, "", b"x") == said
    assert VALIDATION.unsupported(CREATE, JSON, b"x") == ""
    assert VALIDATION.unsupported(CREATE, "", b"") == ""
    assert VALIDATION.unsupported(FILES, "", b"x") == ""
    assert problems_of_body(b"x", "text/plain") == [
        {"where": "body", "problem": "must be application/json or text/csv"}
    ]


def test_an_operation_without_a_body_takes_none() -> None:
    assert VALIDATION.validate(LIST, {"tenant": "acme"}, MultiDict(), JSON, b"{}") == [
        {"where": "body", "problem": "this operation takes no body"}
    ]


def test_routes_without_an_operation_are_not_checked() -> None:
    assert VALIDATION.validate(FILES, {"rest": "a/b"}, MultiDict(x="1"), "", b"{") == []
    assert VALIDATION.validate(OWN[-1], {}, MultiDict(x="1"), "", b"{") == []


def test_what_the_gateway_itself_answers_is_checked_as_well() -> None:
    query = MultiDict({"from": "2026-01-31T00:00:00Z", "by": "key", "limit": "10"})
    assert VALIDATION.validate(OWN[0], {}, query, "", b"") == []
    query = MultiDict({"from": "yesterday", "since": "1"})
    assert VALIDATION.validate(OWN[0], {}, query, "", b"") == [
        {"where": "query.since", "problem": "there is no such parameter"},
        {"where": "query.from", "problem": "is not a date-time"},
    ]


@pytest.mark.parametrize(
    "query",
    [
        [("limit", "1")],
        [("every_s", "0.5")],
        [("every_s", "5")],
        [("every_s", "5e-2")],
        [("active", "true")],
        [("status", "active")],
        [("metric", "1"), ("metric", "2")],
        [("cursor", "12")],
    ],
)
def test_query_parameters_are_read_as_what_they_should_be(query: list[tuple[str, str]]) -> None:
    assert problems_of_query(*query) == []


@pytest.mark.parametrize(
    ("query", "where", "problem"),
    [
        ([("limit", "0")], "query.limit", "must be at least 1"),
        ([("limit", "1.5")], "query.limit", "must be integer"),
        ([("limit", "9" * 5000)], "query.limit", "must be integer"),
        ([("limit", "")], "query.limit", "must be integer"),
        ([("limit", "\u0661")], "query.limit", "must be integer"),
        ([("limit", "1"), ("limit", "2")], "query.limit", "is given more than once"),
        ([("every_s", "nan")], "query.every_s", "must be number"),
        ([("every_s", "0")], "query.every_s", "must be more than 0"),
        ([("active", "yes")], "query.active", "must be boolean"),
        ([("status", "x")], "query.status", "must be one of active, suspended"),
        ([("metric", "1"), ("metric", "x")], "query.metric[1]", "must be integer"),
        ([("metric", "1")] * 4, "query.metric", "has more than 3 items"),
        ([("metric", "1")] * 101, "query.metric", "has more than 100 values"),
        ([("cursor", "123456789")], "query.cursor", "is longer than 8"),
        ([("unknown", "1")], "query.unknown", "there is no such parameter"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_by_name(
    query: list[tuple[str, str]], where: str, problem: str
) -> None:
    assert problems_of_query(*query) == [{"where": where, "problem": problem}]


def test_a_parameter_that_is_required_is_missed() -> None:
    assert problems_of_query(route=TELEMETRY) == [{"where": "query.metric", "problem": "is required"}]


def test_path_parameters_are_checked() -> None:
    assert VALIDATION.validate(LIST, {"tenant": "A B"}, MultiDict(), "", b"") == [
        {"where": "path.tenant", "problem": "does not match ^[a-z0-9-]{1,32}$"}
    ]


def test_at_most_20_problems_are_told() -> None:
    assert len(problems_of_body({"name": "p", "tags": [1] * 500})) == 20
    assert len(problems_of_query(*((f"unknown-{number}", "") for number in range(500)))) == 20


def test_names_of_the_peer_are_cut_and_values_never_repeated() -> None:
    secret = "s" * 500
    for problems in (
        problems_of_body({"name": "p", secret: 1}),
        problems_of_body({"name": "p", "tags": {secret: 1}}),
        problems_of_body({"name": secret}),
        problems_of_query((secret, "1")),
        problems_of_query(("limit", secret)),
    ):
        assert problems
        assert "s" * 81 not in str(problems)
    assert "hunter2" not in str(problems_of_body({"name": "p", "status": "hunter2", "tags": "hunter2"}))


def test_a_deep_body_is_refused_before_it_is_looked_at() -> None:
    deep = [{"where": "body", "problem": "is deeper than 64"}]
    for depth in (65, 500, 5_000, 400_000):
        assert problems_of_body(b"[" * depth + b"]" * depth) == deep
        assert problems_of_body(b'{"a":' * depth + b"1" + b"}" * depth) == deep
    wide = {"name": "p", "settings": {str(number): [[]] for number in range(1000)}}
    assert problems_of_body(wide) == []
    at_the_limit = b"[" * 63 + b"]" * 63
    assert (
        problems_of_body(b'{"name": "p", "settings": {"a": ' + at_the_limit[:61] + at_the_limit[-61:] + b"}}")
        == []
    )


def test_a_large_body_with_many_problems_costs_no_more_than_its_first() -> None:
    body = b'{"name": "p", "tags": [' + b"1," * 500_000 + b"1]}"
    started_s = time.perf_counter()
    assert problems_of_body(body) == [{"where": "body.tags[0]", "problem": "must be string"}]
    assert time.perf_counter() - started_s < 2.0  # all of them would take 5 s and 700 MB


def test_a_list_in_one_parameter_is_split_at_commas() -> None:
    parameter = {
        "name": "ids",
        "in": "query",
        "explode": False,
        "schema": {"type": "array", "items": {"type": "integer"}},
    }
    checks = _with_parameter(parameter)
    assert checks.validate(LIST, {}, MultiDict(ids="1,2"), "", b"") == []
    assert checks.validate(LIST, {}, MultiDict(ids="1,x"), "", b"") == [
        {"where": "query.ids[1]", "problem": "must be integer"}
    ]


def test_text_that_looks_like_a_number_may_still_be_text() -> None:
    checks = _with_parameter(
        {"name": "id", "in": "query", "schema": {"type": ["integer", "string"], "maximum": 5}}
    )
    assert checks.validate(LIST, {}, MultiDict(id="17"), "", b"") == []


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({"name": "a", "in": "query"}, "has no schema"),
        ({"name": "a", "in": "query", "style": "deepObject", "schema": {}}, "only style form is known"),
        ({"name": "a", "in": "query", "schema": {"type": "nope"}}, "document device: list: parameter a: "),
        ({"name": "a", "in": "query", "schema": {"$ref": "http://127.0.0.1/x"}}, "is not #/components"),
        (
            {"name": "a", "in": "query", "schema": {"properties": {"b": {"$ref": "http://127.0.0.1/x"}}}},
            "Retrieval is disabled",
        ),
        ({"name": "a", "in": "query", "schema": {"$ref": "#/components/schemas/No"}}, "there is no #/comp"),
    ],
)
def test_a_parameter_that_cannot_be_checked_is_an_error_at_load(parameter: dict[str, Any], said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        _with_parameter(parameter)


def _with_parameter(parameter: dict[str, Any]) -> Validation:
    operation = {"operationId": "list", "parameters": [parameter], "responses": {}}
    document = parse("device", {"openapi": "3.1.0", "paths": {"/": {"get": operation}}})
    routes = msgspec.structs.replace(ROUTES, routes=[LIST])
    return Validation(routes, Documents({"device": document}))


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["name", "tags"]), inner),
    )
)
def test_any_body_has_problems_or_none_but_never_an_exception(body: Any) -> None:
    raw = msgspec.json.encode(body)
    for problem in problems_of_body(raw):
        assert set(problem) == {"where", "problem"}
        assert len(problem["where"]) <= 80
        assert len(problem["problem"]) <= 300


@given(body=st.binary(max_size=200), content_type=st.text(max_size=40))
def test_any_bytes_have_problems_or_none_but_never_an_exception(body: bytes, content_type: str) -> None:
    assert problems_of_body(body) or not body.strip() or msgspec.json.decode(body)
    VALIDATION.unsupported(CREATE, content_type, body)
    problems_of_body(body, content_type)


@given(number=st.integers(min_value=-(10**17), max_value=10**17), real=st.floats(-1e15, 1e15))
def test_numbers_that_are_written_are_read_again(number: int, real: float) -> None:
    assert validation.coerced(str(number), frozenset({"integer"})) == number
    text = f"{real:.6f}"
    assert validation.coerced(text, frozenset({"number"})) == float(text)


@given(text=st.text())
def test_text_stays_text_where_text_is_wanted(text: str) -> None:
    assert validation.coerced(text, frozenset({"string"})) is text


@given(names=st.lists(st.text(), max_size=30))
def test_any_query_is_checked(names: list[str]) -> None:
    query = CIMultiDict((name, name) for name in names)
    assert len(VALIDATION.validate(LIST, {"tenant": "acme"}, query, "", b"")) <= 20


@pytest.mark.parametrize(
    ("key", "problem"), [("", "is shorter than 1"), ("k" * 129, "is longer than 128"), ("k", "")]
)
def test_header_parameters_are_checked_and_so_is_the_key_that_the_gateway_publishes(
    key: str, problem: str
) -> None:
    body = msgspec.json.encode({"name": "p"})
    headers = CIMultiDict({"idempotency-key": key})
    found = VALIDATION.validate(CREATE, {"tenant": "acme"}, MultiDict(), JSON, body, headers)
    assert found == ([{"where": "header.Idempotency-Key", "problem": problem}] if problem else [])


def test_numbers_are_as_small_as_they_may_be_and_never_infinite() -> None:
    number = frozenset({"number"})
    for text in ("4.18e-211", "0.0016906186773877345", "123456789012345680000.0"):
        assert validation.coerced(text, number) == float(text)
    assert validation.coerced("9e999", number) == "9e999"


def test_numbers_have_all_the_digits_that_a_double_is_written_with() -> None:
    for number in (0.0016906186773877345, 0.00012345678901234567, 1e-4 / 3, -(2 / 3) * 1e-3):
        assert validation.coerced(repr(number), frozenset({"number"})) == number
