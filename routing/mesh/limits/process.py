"""The service of shared limits as a process, which ends at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from typing import Any, Final

import grpc
import msgspec
from envoy.service.ratelimit.v3 import rls_pb2_grpc

from routing.limits.rates import LocalRates
from routing.limits.valkey_lease import LeasedRates
from routing.limits.valkey_link import ValkeyLink
from routing.mesh.limits.service import RateLimits
from routing.xds.plane import ServerTls, StartError, listen
from runtime import clock, garbage

QUESTION_BYTES_MAX: Final = 65_536
DRAIN_S: Final = 5.0
VALKEY_DEADLINE_S: Final = 0.25
OPTIONS: Final = (
    ("grpc.max_receive_message_length", QUESTION_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Where limits are served, and how services share them.

    `keys_max` buckets are known at once, and `calls_max` questions answered. Without `valkey`, its URL, this
    service counts by itself. `node` is its name among `nodes` services, the same after a restart.
    """

    bind: str
    tls: ServerTls | None
    keys_max: int
    calls_max: int
    valkey: str
    node: str
    nodes: int


async def serve(terms: Terms, log: Any) -> None:
    """Serve until SIGTERM or SIGINT; raises StartError."""
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    link = _link(terms, log)
    rates = (
        LocalRates(subjects_max=terms.keys_max, forgets=True)
        if link is None
        else LeasedRates(link, subjects_max=terms.keys_max, now_s=clock.monotonic_s)
    )
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=terms.calls_max)
    service = RateLimits(rates, clock.monotonic_s)
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(service, server)
    listen(server, terms.bind, terms.tls)
    garbage.settle()
    await server.start()
    log.info("mesh_limits_started", bind=terms.bind, shared=link is not None)
    try:
        async with asyncio.TaskGroup() as tasks:
            beats = None if link is None else tasks.create_task(link.run())
            await ending.wait()
            if beats is not None:
                beats.cancel()
    finally:
        await server.stop(DRAIN_S)
        log.info("mesh_limits_stopped")


def _link(terms: Terms, log: Any) -> ValkeyLink | None:
    if not terms.valkey:
        return None

    def changed(error: str | None) -> None:
        if error is None:
            log.info("valkey_connected")
        else:
            log.warning("valkey_away", error=error, until_then="each service keeps to its share")

    try:
        return ValkeyLink(
            terms.valkey,
            node=terms.node,
            deadline_s=VALKEY_DEADLINE_S,
            nodes_expected=terms.nodes,
            changed=changed,
        )
    except ValueError as error:
        raise StartError(f"the address of Valkey is none: {type(error).__name__}") from None
