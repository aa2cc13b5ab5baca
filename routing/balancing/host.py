"""A server of an upstream, with what we have learned of it."""

from __future__ import annotations

from routing.balancing.ejection import Record
from routing.balancing.health import Checks
from routing.gateway.routes_file import Endpoint


class Host:
    """State that lives as long as discovery names the address. Compared by identity."""

    __slots__ = ("address", "check_due_s", "checking", "checks", "endpoint", "in_flight", "record", "turn")

    def __init__(self, endpoint: Endpoint, *, checks: Checks) -> None:
        self.address = endpoint.address
        self.endpoint = endpoint
        self.checks = checks
        self.record = Record()
        self.in_flight = 0
        self.turn = 0
        self.check_due_s = 0.0
        self.checking = False

    def healthy(self, now_s: float) -> bool:
        """Return whether the host passes its checks and is not ejected."""
        return self.checks.healthy and now_s >= self.record.until_s
