"""A server of gRPC that answers whatever is called."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc


@contextlib.asynccontextmanager
async def grpc_server(answer: bytes) -> AsyncIterator[int]:
    """Run a server that answers every call; of `shop.Flaky`, one in three."""
    flaky = 0

    async def handle(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return answer

    async def fails(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal flaky
        flaky += 1
        if flaky < 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return answer

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            of_call = fails if details.method.startswith("/shop.Flaky/") else handle
            return grpc.unary_unary_rpc_method_handler(of_call)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    at = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield int(at)
    finally:
        await server.stop(0)
