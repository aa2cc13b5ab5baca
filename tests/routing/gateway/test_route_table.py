from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.gateway.routes_file import Route
from routing.gateway.table import (
    SEGMENTS_MAX,
    BadPath,
    Found,
    Match,
    NotFound,
    RoutesRefused,
    Table,
    WrongMethod,
    WrongVersion,
    encoded,
    split,
)


def route(path: str, method: str = "GET", **others: object) -> Route:
    name = others.pop("name", f"{method} {path} {others}")
    return Route(name=name, method=method, path=path, upstream="u", public=True, **others)  # type: ignore[arg-type]


def table(*routes: Route) -> Table:
    return Table(routes, default_version="v1")


def name_of(found: Found) -> str:
    assert isinstance(found, Match), found
    return found.route.name


DEVICES = table(
    route("/v1/devices", name="list"),
    route("/v1/devices", "POST", name="add"),
    route("/v1/devices/{device}", name="get"),
    route("/v1/devices/self", name="self"),
    route("/v1/devices/{device}/shadow", "PUT", name="shadow"),
    route("/v1/files/{path...}", name="file"),
    route("/v1/files/index", name="index"),
    route("/", name="root"),
)


@pytest.mark.parametrize(
    ("method", "path", "name", "parameters"),
    [
        ("GET", "/", "root", {}),
        ("GET", "/v1/devices", "list", {}),
        ("HEAD", "/v1/devices", "list", {}),
        ("POST", "/v1/devices", "add", {}),
        ("GET", "/v1/devices/pump-7", "get", {"device": "pump-7"}),
        ("GET", "/v1/devices/self", "self", {}),
        ("GET", "/v1/devices/p%C3%BCmp%201", "get", {"device": "pümp 1"}),
        ("PUT", "/v1/devices/self/shadow", "shadow", {"device": "self"}),
        ("GET", "/v1/files/a/b/c", "file", {"path": "a/b/c"}),
        ("GET", "/v1/files/index", "index", {}),
        ("GET", "/v1/files/index/b", "file", {"path": "index/b"}),
    ],
)
def test_the_most_literal_route_is_meant(
    method: str, path: str, name: str, parameters: dict[str, str]
) -> None:
    found = DEVICES.match(method, path, {})
    assert isinstance(found, Match)
    assert (found.route.name, found.parameters) == (name, parameters)


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/devices/", "/v1//devices", "//v1/devices", "/v1/devices/a/b", "/v1/files", "/v1/files/"],
)
def test_no_other_path_is(path: str) -> None:
    assert DEVICES.match("GET", path, {}) == NotFound()


def test_another_method_is_told_which_there_are() -> None:
    assert DEVICES.match("DELETE", "/v1/devices", {}) == WrongMethod(("GET", "HEAD", "OPTIONS", "POST"))
    assert DEVICES.match("GET", "/v1/devices/a/shadow", {}) == WrongMethod(("OPTIONS", "PUT"))
    assert DEVICES.methods("/v1/devices/self") == ("GET", "HEAD", "OPTIONS")
    assert DEVICES.methods("/nothing") == ()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "v1",
        "*",
        "/v1/../devices",
        "/v1/./devices",
        "/..",
        "/v1/%2e%2e/devices",
        "/v1/%2E/devices",
        "/v1/..;/devices",
        "/v1/..%3Bx/devices",
        "/v1/files/a/.;x=1/b",
        "/v1/devices/a%2Fb",
        "/v1/devices/a%5Cb",
        "/v1/devices/a%00b",
        "/v1/devices/a%0d%0aX:b",
        "/v1/devices/%7f",
        "/v1/devices/%ff",
        "/v1/devices/%c0%ae",
        "/v1/devices/%",
        "/v1/devices/%2",
        "/v1/devices/%zz",
        "/v1/devices/a\\b",
        "/v1/devices/a b",
        "/v1/devices/ä",
        "/v1/devices/a#b",
        "/" + "a/" * SEGMENTS_MAX,
    ],
)
def test_a_path_that_others_might_read_in_another_way_is_refused(path: str) -> None:
    with pytest.raises(BadPath):
        DEVICES.match("GET", path, {})


def test_headers_choose_between_routes_and_who_asks_for_most_comes_first() -> None:
    made = table(
        route("/a", name="plain"),
        route("/a", name="any", headers={"X-Beta": "*"}),
        route("/a", name="both", headers={"X-Beta": "1", "X-Site": "north"}),
    )
    assert name_of(made.match("GET", "/a", {})) == "plain"
    assert name_of(made.match("GET", "/a", {"x-beta": "2"})) == "any"
    assert name_of(made.match("GET", "/a", {"x-beta": "1", "x-site": "north"})) == "both"
    only = table(route("/a", headers={"X-Beta": "1"}))
    assert only.match("GET", "/a", {"x-beta": "2"}) == NotFound()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "one"),
        ("application/json", "one"),
        ("application/vnd.headworks.v1+json", "one"),
        ("application/vnd.headworks.v2+json", "two"),
        ("text/html, APPLICATION/vnd.Headworks.V2+json;q=0.5", "two"),
    ],
)
def test_accept_says_the_version_of_a_path_without_one(accept: str | None, expected: str) -> None:
    made = table(route("/a", name="one", version="v1"), route("/a", name="two", version="v2"))
    headers = {} if accept is None else {"Accept": accept}
    assert name_of(made.match("GET", "/a", headers)) == expected


def test_a_version_that_there_is_not_is_told_which_there_are() -> None:
    made = table(route("/a", version="v1"), route("/a", version="v2"))
    accept = {"Accept": "application/vnd.headworks.v9+json"}
    assert made.match("GET", "/a", accept) == WrongVersion(("v1", "v2"))


@pytest.mark.parametrize(
    "routes",
    [
        [route("/a", name="x"), route("/a", name="y")],
        [route("/{a}", name="x"), route("/{b}", name="y")],
        [route("/a", name="x", headers={"X-A": "1"}), route("/a", name="y", headers={"X-A": "*"})],
        [route("/a", name="x", headers={"X-A": "1"}), route("/a", name="y", headers={"X-B": "1"})],
        [route("/{a...}/b")],
        [route("/v1/a", version="v1")],
        [route("/a//b")],
        [route("/a/../b")],
        [route("/a{b}")],
        [route("/a b")],
        [route("/" + "/".join("a" * (SEGMENTS_MAX + 1)))],
    ],
)
def test_routes_that_cannot_be_told_apart_or_reached_are_refused(routes: list[Route]) -> None:
    with pytest.raises(RoutesRefused):
        table(*routes)


SEGMENTS = st.text(
    st.characters(exclude_characters="/\\", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8
)


@given(st.lists(SEGMENTS.filter(lambda text: text not in {".", ".."}), min_size=1, max_size=5))
def test_what_is_encoded_is_decoded_to_the_same_and_only_once(segments: list[str]) -> None:
    assert split("/" + "/".join(encoded(segment) for segment in segments)) == segments
    assert split("/" + "/".join(quote(segment, safe="") for segment in segments)) == segments
    assert split("/" + "/".join(quote(encoded(segment), safe="") for segment in segments)) == [
        encoded(segment) for segment in segments
    ]


PATHS = st.lists(st.sampled_from(["a", "b", "{x}", "{y}"]), min_size=1, max_size=3)


@given(st.lists(PATHS, min_size=1, max_size=8), st.lists(st.sampled_from("abc"), min_size=1, max_size=3))
def test_the_tree_finds_what_a_search_through_all_routes_finds(
    templates: list[list[str]], asked: list[str]
) -> None:
    shapes = {
        tuple("{}" if part.startswith("{") else part for part in template): template for template in templates
    }
    made = table(*(route("/" + "/".join(template)) for template in shapes.values()))
    fitting = [
        shape
        for shape in shapes
        if len(shape) == len(asked)
        and all(part in {"{}", got} for part, got in zip(shape, asked, strict=True))
    ]
    found = made.match("GET", "/" + "/".join(asked), {})
    if not fitting:
        assert found == NotFound()
        return
    best = min(fitting, key=lambda shape: [part == "{}" for part in shape])
    assert isinstance(found, Match)
    assert found.route.path == "/" + "/".join(shapes[best])
