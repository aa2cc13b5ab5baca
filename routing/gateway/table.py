"""Which route a request is for: a tree over the segments of paths, literal before parameter, the rest last.

Pure. A table is made once of a set of routes and never changed. Two routes that could both be meant are an
error when the table is made, so that the order in a file says nothing.

Limits: a path has at most `SEGMENTS_MAX` segments. Its parameters are decoded once, strictly: what decodes to
a slash, a backslash, a control character, `.` or `..`, or is not UTF-8, is refused (`BadPath`), since the
server behind might understand it as another path than this table did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import msgspec

from routing.gateway.routes_file import PARAMETER, Route

SEGMENTS_MAX: Final = 64
PLAIN: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
"""A path in which nothing is encoded, and nothing would have to be (RFC 3986 3.3)."""
WRITTEN: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
"""A path as RFC 3986 has it."""
UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f/\\]")
VERSION: Final = re.compile(r"v[1-9][0-9]{0,2}")
MEDIA_VERSION: Final = re.compile(r"application/vnd\.headworks\.(v[1-9][0-9]{0,2})\+json", re.IGNORECASE)
KEPT: Final = "!$&'()*+,;=:@"
PRESENT: Final = "*"
"""As the value of a route's header: any value, as long as the header is there."""


class RoutesRefused(Exception):
    """A set of routes cannot be a table; the text names the routes and says why."""


class BadPath(Exception):
    """A path that no route may see; the text says what is wrong, without the path."""


class Match(msgspec.Struct, frozen=True):
    """The route of a request, with its decoded parameters."""

    route: Route
    parameters: dict[str, str]


class NotFound(msgspec.Struct, frozen=True):
    """No route has the path, or the headers."""


class WrongMethod(msgspec.Struct, frozen=True):
    """Routes have the path, with other methods."""

    allow: tuple[str, ...]


class WrongVersion(msgspec.Struct, frozen=True):
    """Routes have the path, in other versions than the one that `Accept` names."""

    versions: tuple[str, ...]


Found = Match | NotFound | WrongMethod | WrongVersion


class _Node:
    """One place in the tree. `ends` and `rests` are the routes that end here, by method."""

    __slots__ = ("ends", "literal", "parameter", "rests")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.ends: dict[str, list[_Entry]] = {}
        self.rests: dict[str, list[_Entry]] = {}


class _Entry:
    """A route at its place; `names` are its parameters in order, `headers` what a request must have."""

    __slots__ = ("headers", "names", "route", "version")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.names = tuple(name for name, _ in PARAMETER.findall(route.path))
        self.headers = tuple((name.lower(), value) for name, value in route.headers.items())
        self.version = route.version


class Table:
    """Finds the route of a request. Raises `RoutesRefused` for routes that cannot be told apart."""

    def __init__(self, routes: Iterable[Route], *, default_version: str) -> None:
        self._default_version = default_version
        self._root = _Node()
        for route in routes:
            self._add(route)
        _sort(self._root)

    def match(self, method: str, path: str, headers: Mapping[str, str]) -> Found:
        """Return the route of a request whose `path` is as it was sent, without its query.

        Raises `BadPath`.
        """
        segments = split(path)
        allow: set[str] = set()
        versions: set[str] = set()
        for values, by_method in _places(self._root, segments, 0, ()):
            entries = by_method.get(method)
            if entries is None and method == "HEAD":
                entries = by_method.get("GET")
            if entries is None:
                allow.update(by_method)
                continue
            for entry in entries:
                if entry.headers and not _has(headers, entry.headers):
                    continue
                if entry.version and entry.version != (wanted_version(headers) or self._default_version):
                    versions.add(entry.version)
                    continue
                return Match(entry.route, dict(zip(entry.names, values, strict=True)) if values else {})
        if versions and wanted_version(headers):
            return WrongVersion(tuple(sorted(versions)))
        if allow:
            return WrongMethod(_allow(allow))
        return NotFound()

    def methods(self, path: str) -> tuple[str, ...]:
        """Return the methods that routes have for `path`, for Allow; raises `BadPath`."""
        found: set[str] = set()
        for _, by_method in _places(self._root, split(path), 0, ()):
            found.update(by_method)
        return _allow(found) if found else ()

    def _add(self, route: Route) -> None:
        if route.version and VERSION.fullmatch(route.path[1:].partition("/")[0]):
            raise RoutesRefused(f"route {route.name}: its path says a version, so `version` must not")
        node = self._root
        segments = route.path[1:].split("/")
        if len(segments) > SEGMENTS_MAX:
            raise RoutesRefused(f"route {route.name}: more than {SEGMENTS_MAX} segments")
        rest = False
        for position, segment in enumerate(segments):
            parameter = PARAMETER.fullmatch(segment)
            if parameter is None:
                _check_literal(route, segment, last=position == len(segments) - 1)
                node = node.literal.setdefault(segment, _Node())
            elif parameter[2]:
                if position != len(segments) - 1:
                    raise RoutesRefused(f"route {route.name}: {segment} must end the path")
                rest = True
            else:
                node.parameter = node.parameter or _Node()
                node = node.parameter
        entry = _Entry(route)
        entries = (node.rests if rest else node.ends).setdefault(route.method, [])
        for other in entries:
            if other.version == entry.version and _both_could(entry.headers, other.headers):
                raise RoutesRefused(
                    f"routes {other.route.name} and {route.name}: {route.method} {route.path} could be either"
                )
        entries.append(entry)


def split(path: str) -> list[str]:
    """Return the decoded segments of a path; raises `BadPath`."""
    if PLAIN.fullmatch(path) is not None:
        segments = path[1:].split("/")
        if "/." in path and any(_is_dots(segment) for segment in segments):
            raise BadPath("the path has a segment . or ..")
    elif WRITTEN.fullmatch(path) is None:
        raise BadPath("the path has characters that must be percent-encoded, or begins without /")
    else:
        segments = [_decoded(segment) for segment in path[1:].split("/")]
    if len(segments) > SEGMENTS_MAX:
        raise BadPath(f"the path has more than {SEGMENTS_MAX} segments")
    return segments


def is_plain(path: str) -> bool:
    """Return whether nothing in a path is encoded, so that it reads the same everywhere."""
    return PLAIN.fullmatch(path) is not None


def encoded(value: str, *, rest: bool = False) -> str:
    """Return a decoded parameter as a segment of a path, or as several where it is the rest."""
    return quote(value, safe=KEPT + "/" if rest else KEPT)


def wanted_version(headers: Mapping[str, str]) -> str:
    """Return the version that `Accept` names, or nothing."""
    accept = headers.get("Accept")
    if accept is None or "vnd." not in accept:
        return ""
    found = MEDIA_VERSION.search(accept)
    return found[1].lower() if found else ""


def version_of(route: Route, default_version: str) -> str:
    """Return the version of a route: of its path, its own, or the default."""
    first = route.path[1:].partition("/")[0]
    return route.version or (first if VERSION.fullmatch(first) else default_version)


def _is_dots(segment: str) -> bool:
    """Return whether a segment is . or .., also before a `;`, from which on some servers pass over it."""
    return segment.partition(";")[0] in {".", ".."}


def _decoded(segment: str) -> str:
    if "%" not in segment:
        value = segment
    else:
        try:
            value = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError as error:
            raise BadPath("a segment of the path is not UTF-8") from error
        if UNSAFE.search(value):
            raise BadPath("a segment of the path hides a slash, a backslash or a control character")
    if _is_dots(value):
        raise BadPath("the path has a segment . or ..")
    return value


def _places(
    node: _Node, segments: list[str], position: int, values: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, list[_Entry]]]]:
    """Yield where routes for a path are, the most literal first."""
    if position == len(segments):
        if node.ends:
            yield values, node.ends
        return
    segment = segments[position]
    if (literal := node.literal.get(segment)) is not None:
        yield from _places(literal, segments, position + 1, values)
    if node.parameter is not None and segment:
        yield from _places(node.parameter, segments, position + 1, (*values, segment))
    if node.rests and all(segments[position:]):
        yield (*values, "/".join(segments[position:])), node.rests


def _has(headers: Mapping[str, str], wanted: tuple[tuple[str, str], ...]) -> bool:
    return all((got := headers.get(name)) is not None and value in {PRESENT, got} for name, value in wanted)


def _both_could(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> bool:
    """Return whether one request could have the headers of both, and neither asks for more."""
    if len(one) != len(other):
        return False
    others = dict(other)
    return all(
        name not in others or PRESENT in {value, others[name]} or value == others[name] for name, value in one
    )


def _sort(node: _Node) -> None:
    """Put the routes that ask for most first."""
    for by_method in (node.ends, node.rests):
        for entries in by_method.values():
            entries.sort(key=lambda entry: (-len(entry.headers), not entry.version))
    for below in (*node.literal.values(), *([node.parameter] if node.parameter else [])):
        _sort(below)


def _check_literal(route: Route, segment: str, *, last: bool) -> None:
    if "{" in segment or "}" in segment:
        raise RoutesRefused(f"route {route.name}: a parameter is a whole segment, not a part of {segment}")
    if segment in {".", ".."} or (not segment and not (last and route.path == "/")):
        raise RoutesRefused(f"route {route.name}: the path has a segment that is empty, . or ..")
    if not is_plain(f"/{segment}"):
        raise RoutesRefused(f"route {route.name}: {segment} has characters that a path cannot have")


def _allow(methods: set[str]) -> tuple[str, ...]:
    more = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
    return tuple(sorted(methods | more))
