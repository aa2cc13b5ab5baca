"""What a customer agreed to, as one object for the traffic of devices and for calls of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from routing.tenancy.registry import DEFAULT_PLAN
from runtime.settings_file import Section, Wrong

RATE_MIN: Final = 0.001
"""Of what is limited at all: less than this is a pause of days for a message."""

Rate = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
Burst = Annotated[float, msgspec.Meta(ge=0.001, le=86_400)]
Connections = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Requests = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Plan(Section, frozen=True):
    """What tenants on a plan may send; 0 is unlimited. `device_*` hold for each device.

    `requests_per_s` and what follows it count calls of the API: of the whole tenant where the plan is the
    tenant's, of one key where the key names the plan. Days and months are those of UTC.
    """

    messages_per_s: Rate = 0.0
    bytes_per_s: Rate = 0.0
    connections_max: Connections = 0
    device_messages_per_s: Rate = 100.0
    device_bytes_per_s: Rate = 1_000_000.0
    device_connections_max: Connections = 10
    burst_s: Burst = 2.0
    over_limit: Literal["pause", "refuse", "shed"] = "pause"
    requests_per_s: Rate = 0.0
    requests_burst_s: Burst = 2.0
    concurrent_max: Connections = 0
    daily_max: Requests = 0
    monthly_max: Requests = 0

    @property
    def requests_burst(self) -> float:
        """How many calls may come at once, if none came before; at least one."""
        return max(1.0, self.requests_per_s * self.requests_burst_s)


NO_LIMITS: Final = Plan()


def plan_named(plans: Mapping[str, Plan], name: str) -> Plan:
    """Return a plan by its name, else the default one, else one without limits."""
    return plans.get(name) or plans.get(DEFAULT_PLAN) or NO_LIMITS


def check_plan(key: str, plan: Plan, wrong: Wrong) -> None:
    """Check what no single field can know."""
    rates = (
        "messages_per_s",
        "bytes_per_s",
        "device_messages_per_s",
        "device_bytes_per_s",
        "requests_per_s",
    )
    for field in rates:
        if 0 < getattr(plan, field) < RATE_MIN:
            raise wrong(f"{key}.{field}", f"0 is unlimited; a limit is at least {RATE_MIN}")
