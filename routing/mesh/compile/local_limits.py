"""Rate limits that each proxy keeps by itself: a bucket that is filled all the time."""

from __future__ import annotations

import math
from typing import Final

from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit as Limiter

from routing.mesh.compile.messages import Config, Message, extension, milliseconds, number, packed, share
from routing.mesh.model.rate_limits import LocalRateLimit

NAME: Final = "envoy.filters.http.local_ratelimit"
STAT_PREFIX: Final = "policy"


def filter_() -> Config:
    """Return a filter that limits nothing by itself."""
    return extension(NAME, Limiter, {"stat_prefix": STAT_PREFIX})


def said(limit: LocalRateLimit) -> Message:
    """Return what is said to the filter; who is refused hears when there will be a token for somebody."""
    per_ms = limit.per.milliseconds
    retry_after = {"key": "retry-after", "value": str(math.ceil(per_ms / limit.requests / 1000))}
    return packed(
        Limiter,
        {
            "stat_prefix": STAT_PREFIX,
            "token_bucket": {
                "max_tokens": limit.burst or limit.requests,
                "tokens_per_fill": number(limit.requests),
                "fill_interval": milliseconds(per_ms),
            },
            "filter_enabled": {"default_value": share(100)},
            "filter_enforced": {"default_value": share(100)},
            "rate_limited_as_resource_exhausted": True,
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            "response_headers_to_add": [
                {"header": retry_after, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            ],
        },
    )
