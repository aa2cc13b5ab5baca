"""Envoy's rate limit service over gRPC: answers whether a request is within a limit that proxies share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import grpc
from envoy.service.ratelimit.v3 import rls_pb2_grpc
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse

from routing.limits.rates import ENOUGH, Rates
from routing.mesh.compile.messages import Config, milliseconds
from routing.mesh.limits.descriptor import Asked, NotOurs, asked

UNITS: Final = {1000: "SECOND", 60_000: "MINUTE", 3_600_000: "HOUR", 86_400_000: "DAY"}
"""The times that Envoy has a name for."""


class RateLimits(rls_pb2_grpc.RateLimitServiceServicer):  # type: ignore[misc]  # grpcio has no types
    """Decides by `rates`, at the time that `now_s` says."""

    def __init__(self, rates: Rates, now_s: Callable[[], float]) -> None:
        self._rates = rates
        self._now_s = now_s

    async def ShouldRateLimit(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        """Take a token of each descriptor, or of none if one has none."""
        try:
            all_asked = [
                asked(request.domain, [(entry.key, entry.value) for entry in descriptor.entries])
                for descriptor in request.descriptors
            ]
        except NotOurs as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        for each in all_asked:
            await self._rates.prepare(each.subject, each.rate)
        return RateLimitResponse(**self._decided(all_asked))

    def _decided(self, all_asked: list[Asked]) -> Config:
        now_s = self._now_s()
        there = [self._rates.left(each.subject, each.rate, now_s)[0] >= ENOUGH for each in all_asked]
        if all(there):
            for each in all_asked:
                self._rates.take(each.subject, each.rate, now_s)
        statuses = [
            self._status(each, now_s, refused=not has) for each, has in zip(all_asked, there, strict=True)
        ]
        if all(there):
            return {"overall_code": "OK", "statuses": statuses}
        waits = [
            self._rates.wait_s(each.subject, each.rate, now_s)
            for each, has in zip(all_asked, there, strict=True)
            if not has
        ]
        header = {"key": "retry-after", "value": str(max(1, math.ceil(max(waits))))}
        return {"overall_code": "OVER_LIMIT", "statuses": statuses, "response_headers_to_add": [header]}

    def _status(self, each: Asked, now_s: float, *, refused: bool) -> Config:
        left = max(0.0, self._rates.left(each.subject, each.rate, now_s)[1])
        full_ms = round((each.rate.burst - left) / each.rate.per_s * 1000)
        limit: Config = {"requests_per_unit": each.requests, "unit": UNITS.get(each.per_ms, "UNKNOWN")}
        return {
            "code": "OVER_LIMIT" if refused else "OK",
            "current_limit": limit,
            "limit_remaining": math.floor(left + 1 - ENOUGH),
            "duration_until_reset": milliseconds(max(0, full_ms)),
        }
