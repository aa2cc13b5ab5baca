"""A collector of traces: OTLP over gRPC, which keeps the spans that it gets.

Source: https://opentelemetry.io/docs/specs/otlp/ .
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.mesh_rig import port

DEADLINE_S = 30.0
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Span(msgspec.Struct, frozen=True):
    """A span, as far as tests ask."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: int
    attributes: dict[str, str]


class Collector:
    """The spans that came."""

    def __init__(self) -> None:
        self.port = port()
        self.spans: list[Span] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def export(self, request: Any, _: Any) -> Any:
        for resource in request.resource_spans:
            of = _texts(resource.resource.attributes)
            self.spans += [
                Span(
                    service=of["service.name"],
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    kind=span.kind,
                    attributes=_texts(span.attributes),
                )
                for scope in resource.instrumentation_library_spans
                for span in scope.spans
            ]
        return ExportTraceServiceResponse()

    async def until(self, holds: Callable[[list[Span]], bool]) -> list[Span]:
        """Wait until the spans are as they should be."""
        until_s = time.monotonic() + DEADLINE_S
        while not holds(self.spans):
            assert time.monotonic() < until_s, self.spans
            await asyncio.sleep(0.05)
        return self.spans


def _texts(attributes: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector until the block ends."""
    collector = Collector()
    server = grpc.aio.server()
    export = grpc.unary_unary_rpc_method_handler(
        collector.export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Export": export})])
    server.add_insecure_port(collector.address)
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
