"""The aggregated discovery service over gRPC: both variants, who may ask, limits, and the end.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol, "Aggregated Discovery Service".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import grpc
import msgspec
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, DiscoveryResponse, Resource
from google.protobuf import any_pb2

from routing.mesh.compile.proxy import Proxy
from routing.xds.bootstrap import BadMetadata, proxy_of
from routing.xds.configurations import Configurations, Served, Unusable
from routing.xds.identity import identity_of, may_ask
from routing.xds.issuer import BadAuthority, Issuer
from routing.xds.stream import Stream
from routing.xds.subscription import Delta, Response, StateOfTheWorld, Status, TooManyNames

REQUEST_BYTES_MAX: Final = 4 * 2**20
RESPONSE_BYTES_MAX: Final = 64 * 2**20
NAMES_MAX: Final = 100_000
FIRST_REQUEST_S: Final = 10.0
RENEWED_AGAIN_S: Final = 60.0
OPTIONS: Final = (
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


GOING: Final = "the control plane is going away"
Key: TypeAlias = tuple[str, bytes]
"""A node, and where its proxy stands: those that have both in common run the same."""


class Refused(Exception):
    """A stream that is not served: a status of gRPC, and why."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Session:
    """One stream of a proxy: what it runs, and the event that there is something to do."""

    def __init__(self, node: str, proxy: Proxy, served: Served, stream: Stream[Any]) -> None:
        self.node = node
        self.proxy = proxy
        self.stream = stream
        self._served = served
        self._secrets: list[Any] = []
        self._snapshot = served.snapshot
        self.problem = ""
        """Why it does not have what is served now, but what was before."""
        self.awake = asyncio.Event()
        self.ended: Refused | None = None
        self.closed = False

    @property
    def served(self) -> Served:
        """What it shall run, but its secrets."""
        return self._served

    def serve(self, served: Served) -> None:
        """Let it run something else."""
        self._served = served
        self._refresh()

    def entrust(self, secrets: list[Any]) -> None:
        """Give it secrets in place of those that it had."""
        self._secrets = secrets
        self._refresh()

    def _refresh(self) -> None:
        snapshot = self._served.snapshot
        self._snapshot = snapshot.with_secrets(self._secrets) if self._secrets else snapshot
        self.awake.set()

    def statuses(self) -> list[Status]:
        """Return what the proxy has, by type."""
        return self.stream.statuses()

    def next(self) -> Response | None:
        """Return what is to be sent now; nothing once it ends."""
        return None if self.closed else self.stream.next(self._snapshot)

    def end(self, refused: Refused | None) -> None:
        """Let the stream end, as soon as what is being sent is."""
        self.ended = self.ended or refused
        self.closed = True
        self.awake.set()


class Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # grpcio has no types
    """Serves the last good configurations to the proxies that may have them."""

    def __init__(
        self,
        configurations: Configurations,
        *,
        trust_domain: str,
        mutual: bool,
        streams_max: int,
        issuer: Issuer | None,
        log: Any,
    ) -> None:
        self._configurations = configurations
        self._trust_domain = trust_domain
        self._mutual = mutual
        self._streams_max = streams_max
        self._issuer = issuer
        self._log = log
        self._draining = False
        self._open = 0
        self._shared: WeakValueDictionary[Key, Served] = WeakValueDictionary()
        self.sessions: set[Session] = set()

    async def replace(self, configurations: Configurations) -> None:
        """Serve other configurations; a proxy that cannot be compiled for keeps what it has."""
        self._configurations = configurations
        self._shared.clear()
        for session in tuple(self.sessions):
            try:
                session.serve(self._of(session.node, session.proxy))
                session.problem = ""
            except Unusable as error:
                session.problem = str(error)
                self._log.warning("mesh_proxy_keeps_its_last", node=session.node, why=str(error))
            await asyncio.sleep(0)  # proxies are served meanwhile

    async def replace_endpoints(self, configurations: Configurations, changed: frozenset[str]) -> None:
        """Serve configurations in which only the endpoints of the nodes `changed` are others."""
        self._configurations = configurations
        after: dict[int, tuple[Served, Served]] = {}
        for session in tuple(self.sessions):
            before = session.served
            if id(before) not in after:
                after[id(before)] = before, before.with_endpoints(configurations.endpoints, changed)
            _, served = after[id(before)]
            if served is before:
                continue
            session.serve(served)
            if not session.problem:
                self._shared[_key(session.node, session.proxy)] = served
            await asyncio.sleep(0)  # proxies are served meanwhile

    def _of(self, node: str, proxy: Proxy) -> Served:
        """Return what a proxy runs, shared by those that run the same; raises Unusable."""
        key = _key(node, proxy)
        served = self._shared.get(key)
        if served is None:
            served = self._shared[key] = self._configurations.of(node, proxy)
        return served

    async def renew(self) -> None:
        """Give all proxies new secrets, because the authority is another."""
        assert self._issuer is not None
        for session in tuple(self.sessions):
            session.entrust(self._issuer.secrets(session.node))
            await asyncio.sleep(0)  # proxies are served meanwhile

    def drain(self) -> None:
        """End all streams: proxies run on, and ask another control plane."""
        self._draining = True
        for session in self.sessions:
            session.end(Refused(grpc.StatusCode.UNAVAILABLE, GOING))

    async def StreamAggregatedResources(  # noqa: N802  # Envoy's own
        self, requests: AsyncIterator[Any], context: Any
    ) -> None:
        """Serve the state of the world."""

        def take(session: Session, request: Any) -> None:
            subscription = session.stream.of(request.type_url)
            if subscription is not None:
                subscription.take(request.resource_names, request.response_nonce, _error(request))

        await self._serve(requests, context, StateOfTheWorld, take, _state)

    async def DeltaAggregatedResources(  # noqa: N802  # Envoy's own
        self, requests: AsyncIterator[Any], context: Any
    ) -> None:
        """Serve what is different."""

        def take(session: Session, request: Any) -> None:
            subscription = session.stream.of(request.type_url)
            if subscription is not None:
                subscription.take(
                    request.resource_names_subscribe,
                    request.resource_names_unsubscribe,
                    dict(request.initial_resource_versions),
                    request.response_nonce,
                    _error(request),
                )

        await self._serve(requests, context, Delta, take, _difference)

    async def _serve(
        self,
        requests: AsyncIterator[Any],
        context: Any,
        variant: type[StateOfTheWorld | Delta],
        take: Callable[[Session, Any], None],
        message: Callable[[Response], Any],
    ) -> None:
        self._open += 1
        refused: Refused | None = None
        try:
            self._admit()
            session = await self._opened(requests, context, variant, take)
            try:
                await self._run(session, requests, context, take, message)
            finally:
                self.sessions.discard(session)
                self._log.info("mesh_proxy_left", node=session.node)
            refused = session.ended
        except Refused as error:
            refused = error
        finally:
            self._open -= 1
        if refused is not None:
            self._log.info("mesh_stream_ended", code=refused.code.name, why=str(refused))
            await context.abort(refused.code, str(refused))

    def _admit(self) -> None:
        if self._draining:
            raise Refused(grpc.StatusCode.UNAVAILABLE, GOING)
        if self._open > self._streams_max:
            text = f"no more than {self._streams_max} streams are served"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

    async def _opened(
        self,
        requests: AsyncIterator[Any],
        context: Any,
        variant: type[StateOfTheWorld | Delta],
        take: Callable[[Session, Any], None],
    ) -> Session:
        """Take the first request, which says who asks; raises Refused."""
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration) as error:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no request came") from error
        node = first.node.id
        if self._mutual and not may_ask(identity_of(context.auth_context()), node, self._trust_domain):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "the certificate does not name this node")
        try:
            proxy = proxy_of(first.node.metadata)
            served = self._of(node, proxy)
        except BadMetadata as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        except Unusable as error:
            raise Refused(grpc.StatusCode.NOT_FOUND, str(error)) from error
        stream: Stream[Any] = Stream(variant, names_max=NAMES_MAX)
        session = Session(node, proxy, served, stream)
        if self._issuer is not None:
            try:
                session.entrust(self._issuer.secrets(node))
            except BadAuthority as error:
                raise Refused(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        _taken(session, first, take)
        self.sessions.add(session)
        self._log.info("mesh_proxy_came", node=node, variant=variant.__name__)
        return session

    async def _run(
        self,
        session: Session,
        requests: AsyncIterator[Any],
        context: Any,
        take: Callable[[Session, Any], None],
        message: Callable[[Response], Any],
    ) -> None:
        async def reads() -> None:
            try:
                async for request in requests:
                    _taken(session, request, take)
            finally:
                session.end(None)

        session.awake.set()
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(reads())]
            if self._issuer is not None:
                beside.append(tasks.create_task(_renews(session, self._issuer, self._log)))
            while not session.closed:
                await session.awake.wait()
                session.awake.clear()
                while (response := session.next()) is not None:
                    await context.write(message(response))
            for each in beside:
                each.cancel()


async def _renews(session: Session, issuer: Issuer, log: Any) -> None:
    """Give a proxy new secrets, each time before those that it has end."""
    while True:
        await asyncio.sleep(issuer.renewed_after_s())
        try:
            session.entrust(issuer.secrets(session.node))
        except BadAuthority as error:
            log.warning("mesh_proxy_keeps_its_last", node=session.node, why=str(error))
            await asyncio.sleep(RENEWED_AGAIN_S)


def _key(node: str, proxy: Proxy) -> Key:
    return node, msgspec.json.encode(proxy)


def _taken(session: Session, request: Any, take: Callable[[Session, Any], None]) -> None:
    try:
        take(session, request)
    except TooManyNames as error:
        session.end(Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)))
    session.awake.set()


def _error(request: Any) -> str | None:
    return str(request.error_detail.message) if request.HasField("error_detail") else None


def _state(response: Response) -> Any:
    return DiscoveryResponse(
        version_info=response.version,
        type_url=response.kind,
        nonce=response.nonce,
        resources=[any_pb2.Any(type_url=response.kind, value=each.body) for each in response.resources],
    )


def _difference(response: Response) -> Any:
    return DeltaDiscoveryResponse(
        system_version_info=response.version,
        type_url=response.kind,
        nonce=response.nonce,
        removed_resources=response.removed,
        resources=[
            Resource(
                name=each.name,
                version=each.version,
                resource=any_pb2.Any(type_url=response.kind, value=each.body),
            )
            for each in response.resources
        ],
    )
