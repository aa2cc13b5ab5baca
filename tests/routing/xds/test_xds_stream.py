"""The deciders of xDS against a proxy that takes or refuses whatever it is sent, in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from hypothesis import given
from hypothesis import strategies as st

from routing.mesh.compile.messages import extension
from routing.xds.snapshot import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, WHOLE, Dangling, Snapshot
from routing.xds.stream import Stream
from routing.xds.subscription import Delta, Response, StateOfTheWorld, TooManyNames

BAD = 99
"""A revision that the proxy refuses."""


def messages(services: dict[str, tuple[int, int]], revision: int = 0) -> dict[str, list[Any]]:
    """Return what leads to services, by revision of the cluster and of its endpoints."""
    clusters, endpoints, routes, listeners = [], [], [], []
    for name, (cluster, endpoint) in services.items():
        eds = {"service_name": f"e-{name}"}
        clusters.append(
            Cluster(name=name, type="EDS", eds_cluster_config=eds, connect_timeout={"seconds": cluster + 1})
        )
        priority = {"endpoints": [{"priority": endpoint}]}
        endpoints.append(ClusterLoadAssignment(cluster_name=f"e-{name}", **priority))
        match = {"match": {"prefix": "/"}, "route": {"cluster": name}}
        hosts = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [match]}]}
        routes.append(RouteConfiguration(name=f"r-{name}", **hosts))
        rds = {"stat_prefix": str(revision), "rds": {"route_config_name": f"r-{name}"}}
        chain = {"filters": [extension("http", HttpConnectionManager, rds)]}
        listeners.append(Listener(name=f"l-{name}", filter_chains=[chain]))
    return {CLUSTERS: clusters, ENDPOINTS: endpoints, ROUTES: routes, LISTENERS: listeners}


def refused(kind: str, body: bytes) -> bool:
    if kind == CLUSTERS:
        return bool(Cluster.FromString(body).connect_timeout.seconds == BAD + 1)
    if kind == ENDPOINTS:
        return any(each.priority == BAD for each in ClusterLoadAssignment.FromString(body).endpoints)
    return False


class Proxy:
    """A simulated Envoy: it asks for the names that what it holds leads to, as Envoy does."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta
        self.stream: Stream[Any] = Stream(Delta if delta else StateOfTheWorld, names_max=1000)
        self.has: dict[str, dict[str, bytes]] = {
            kind: {} for kind in (CLUSTERS, ENDPOINTS, LISTENERS, ROUTES)
        }
        self.names: dict[str, set[str]] = {ENDPOINTS: set(), ROUTES: set()}
        self.nonces = dict.fromkeys(self.has, "")
        self.requests: deque[tuple[Any, ...]] = deque()
        self.responses: deque[Response] = deque()
        self.refusals = 0
        self.received: list[Response] = []
        for kind in (CLUSTERS, LISTENERS):
            self._say(kind, "", None)

    def _say(
        self, kind: str, nonce: str, error: str | None, more: Iterable[str] = (), less: Iterable[str] = ()
    ) -> None:
        if self.delta:
            self.requests.append((kind, tuple(more), tuple(less), {}, nonce, error))
        else:
            self.requests.append((kind, tuple(self.names.get(kind, ())), self.nonces[kind], error))

    def server_reads(self) -> None:
        if self.requests:
            kind, *rest = self.requests.popleft()
            self.stream.of(kind).take(*rest)  # type: ignore[union-attr]

    def server_sends(self, snapshot: Snapshot) -> bool:
        response = self.stream.next(snapshot)
        if response is not None:
            self.responses.append(response)
        return response is not None

    def reads(self) -> None:
        if not self.responses:
            return
        response = self.responses.popleft()
        kind = response.kind
        self.received.append(response)
        self.nonces[kind] = response.nonce
        if any(refused(kind, each.body) for each in response.resources):
            self.refusals += 1
            self._say(kind, response.nonce, "no")
            return
        if kind in WHOLE and not self.delta:
            self.has[kind] = {}
        self.has[kind].update({each.name: each.body for each in response.resources})
        for name in response.removed:
            self.has[kind].pop(name, None)
        self._say(kind, response.nonce, None)
        self._ask_for_what_follows()

    def _ask_for_what_follows(self) -> None:
        wanted = {
            ENDPOINTS: {f"e-{name}" for name in self.has[CLUSTERS]},
            ROUTES: {f"r-{name[2:]}" for name in self.has[LISTENERS]},
        }
        for kind, names in wanted.items():
            if names != self.names[kind]:
                more, less = names - self.names[kind], self.names[kind] - names
                self.names[kind] = names
                for name in less:
                    self.has[kind].pop(name, None)
                self._say(kind, "" if self.delta else self.nonces[kind], None, more, less)

    def broken(self) -> list[str]:
        """Return the routes in use that lead to a cluster without endpoints."""
        used = [name[2:] for name in self.has[LISTENERS] if f"r-{name[2:]}" in self.has[ROUTES]]
        return [
            name for name in used if name not in self.has[CLUSTERS] or f"e-{name}" not in self.has[ENDPOINTS]
        ]

    def settle(self, snapshot: Snapshot) -> None:
        for _ in range(1000):
            sent = self.server_sends(snapshot)
            if not sent and not self.requests and not self.responses:
                return
            self.reads()
            self.server_reads()
        raise AssertionError("it never ends")


REVISION = st.sampled_from([0, 1, 2, BAD])
SERVICES = st.dictionaries(st.sampled_from("abc"), st.tuples(REVISION, REVISION))
GOOD = st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 2), st.integers(0, 2)))


def held(snapshot: Snapshot) -> dict[str, dict[str, bytes]]:
    kinds = (CLUSTERS, ENDPOINTS, LISTENERS, ROUTES)
    return {kind: {name: each.body for name, each in snapshot.of(kind).items()} for kind in kinds}


@pytest.mark.parametrize("delta", [False, True])
@given(
    steps=st.lists(st.one_of(SERVICES, st.sampled_from(["server_reads", "send", "reads"])), max_size=60),
    last=GOOD,
)
def test_a_proxy_ends_with_the_snapshot_and_is_never_led_nowhere(
    steps: list[Any], last: dict[str, tuple[int, int]], *, delta: bool
) -> None:
    proxy = Proxy(delta=delta)
    snapshot = Snapshot({})
    for step in steps:
        if isinstance(step, dict):
            snapshot = Snapshot(messages(step))
        elif step == "send":
            proxy.server_sends(snapshot)
        else:
            getattr(proxy, step)()
        assert proxy.broken() == []
    proxy.settle(snapshot)  # also with what it refuses, it comes to rest
    assert proxy.broken() == []
    proxy.settle(Snapshot(messages(last)))
    assert proxy.has == held(Snapshot(messages(last)))
    assert all(each.error == "" and each.accepted == each.sent for each in proxy.stream.statuses())


@pytest.mark.parametrize("delta", [False, True])
def test_what_is_refused_is_sent_once_and_the_rest_waits(*, delta: bool) -> None:
    proxy = Proxy(delta=delta)
    good = Snapshot(messages({"a": (0, 0)}))
    proxy.settle(good)
    proxy.settle(Snapshot(messages({"a": (BAD, 0), "b": (0, 0)})))
    assert proxy.refusals == 1
    assert proxy.has == held(good)
    clusters = proxy.stream.statuses()[0]
    assert clusters.error == "no"
    assert clusters.accepted != clusters.sent
    assert proxy.stream.of("type.googleapis.com/no.such.Type") is None


@pytest.mark.parametrize("delta", [False, True])
def test_only_what_changed_is_sent(*, delta: bool) -> None:
    proxy = Proxy(delta=delta)
    proxy.settle(Snapshot(messages(dict.fromkeys("abc", (0, 0)))))
    proxy.received.clear()
    proxy.settle(Snapshot(messages({"a": (0, 0), "b": (0, 1), "c": (0, 0)})))
    assert [(each.kind, [one.name for one in each.resources]) for each in proxy.received] == [
        (ENDPOINTS, ["e-b"])
    ]
    proxy.received.clear()
    proxy.settle(Snapshot(messages({"a": (1, 0), "b": (0, 1), "c": (0, 0)})))
    whole = ["a"] if delta else ["a", "b", "c"]
    assert [(each.kind, [one.name for one in each.resources]) for each in proxy.received] == [
        (CLUSTERS, whole),
        (ENDPOINTS, ["e-a"]),  # the cluster warms with them
    ]


def test_a_proxy_that_comes_again_is_sent_only_what_it_lacks() -> None:
    snapshot = Snapshot(messages({"a": (0, 0), "b": (0, 0)}))
    stream = Stream(Delta, names_max=10)
    clusters = stream.of(CLUSTERS)
    assert clusters is not None
    clusters.take((), (), {"a": snapshot.of(CLUSTERS)["a"].version, "b": "old", "gone": "1"}, "", None)
    first = stream.next(snapshot)
    assert first is not None
    assert ([each.name for each in first.resources], first.removed) == (["b"], ())
    clusters.take((), (), {}, first.nonce, None)
    second = stream.next(snapshot)
    assert second is not None
    assert (second.resources, second.removed) == ((), ("gone",))


def test_a_name_that_is_not_there_is_said_to_be_removed_once() -> None:
    stream = Stream(Delta, names_max=10)
    endpoints = stream.of(ENDPOINTS)
    assert endpoints is not None
    endpoints.take(("e-a",), (), {}, "", None)
    first = stream.next(Snapshot({}))
    assert first is not None
    assert first.removed == ("e-a",)
    endpoints.take((), (), {}, first.nonce, None)
    assert stream.next(Snapshot({})) is None
    assert stream.next(Snapshot(messages({"a": (0, 0)}))) is not None


def test_a_wildcard_is_given_up_by_naming() -> None:
    snapshot = Snapshot(messages({"a": (0, 0), "b": (0, 0)}))
    clusters = StateOfTheWorld(CLUSTERS, names_max=10)
    clusters.take((), "", None)
    first = clusters.next(snapshot.of(CLUSTERS), keep=False)
    assert first is not None
    assert len(first.resources) == 2
    clusters.take(("a",), first.nonce, None)
    second = clusters.next(snapshot.of(CLUSTERS), keep=False)
    assert second is None
    clusters.take((), first.nonce, None)
    clusters.take((), first.nonce, None)
    assert not clusters.wildcard
    clusters.take(("*",), first.nonce, None)
    assert clusters.wildcard
    delta = Delta(CLUSTERS, names_max=10)
    delta.take(("*", "a"), (), {}, "", None)
    delta.take((), ("*",), {}, "", None)
    assert (delta.wildcard, delta.names) == (False, {"a"})


def test_an_older_nonce_is_of_no_account() -> None:
    endpoints = StateOfTheWorld(ENDPOINTS, names_max=10)
    endpoints.take(("e-a",), "", None)
    assert endpoints.next(Snapshot(messages({"a": (0, 0)})).of(ENDPOINTS), keep=False) is not None
    endpoints.take((), "7", "no")
    assert endpoints.names == {"e-a"}
    assert endpoints.status.error == ""


def test_names_are_limited() -> None:
    with pytest.raises(TooManyNames):
        StateOfTheWorld(ENDPOINTS, names_max=1).take(("a", "b"), "", None)
    with pytest.raises(TooManyNames):
        Delta(ENDPOINTS, names_max=1).take(("a", "b"), (), {}, "", None)
    with pytest.raises(TooManyNames):
        Delta(ENDPOINTS, names_max=1).take((), (), {"a": "1", "b": "1"}, "", None)


@pytest.mark.parametrize("kind", [CLUSTERS, ENDPOINTS, ROUTES])
def test_a_snapshot_whose_references_lead_nowhere_is_none(kind: str) -> None:
    with pytest.raises(Dangling):
        Snapshot({**messages({"a": (0, 0)}), kind: []})


def test_a_name_is_given_once() -> None:
    twice = messages({"a": (0, 0)})
    twice[CLUSTERS] *= 2
    with pytest.raises(Dangling):
        Snapshot(twice)


def test_what_a_proxy_kept_from_another_stream_is_what_it_has() -> None:
    snapshot = Snapshot(messages({"cart": (1, 1)}))
    subscription = Delta(ENDPOINTS, names_max=9)
    held = {"e-cart": snapshot.of(ENDPOINTS)["e-cart"].version}
    subscription.take(["e-cart"], [], held, "", None)
    assert subscription.next(snapshot.of(ENDPOINTS), keep=True) is None
    assert subscription.status.accepted == subscription.status.sent != ""


def test_endpoints_change_without_the_rest() -> None:
    before = Snapshot(messages({"cart": (1, 1), "stock": (1, 1)}))
    after = before.with_endpoints(messages({"cart": (1, 2)})[ENDPOINTS])
    assert {kind for kind in (CLUSTERS, LISTENERS, ROUTES) if before.of(kind) is after.of(kind)} == {
        CLUSTERS,
        LISTENERS,
        ROUTES,
    }
    assert before.of(ENDPOINTS)["e-cart"] != after.of(ENDPOINTS)["e-cart"]
    assert before.of(ENDPOINTS)["e-stock"] == after.of(ENDPOINTS)["e-stock"]
