"""Who fails too often is left out for a while (passive health, Envoy's "outlier detection").

A server that comes back is on probation: one failure ejects it again, for twice as long. Each time that it
serves as long as it was ejected, its next ejection is halved again.
"""

from __future__ import annotations

from routing.gateway.routes_file import Ejection


class Record:
    """What a server has done: failures in a row, ejections that count, and until when it is out."""

    __slots__ = ("failures", "times", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.times = 0
        self.until_s = float("-inf")


def succeeded(record: Record, terms: Ejection, now_s: float) -> None:
    """Book a request that went well."""
    record.failures = 0
    if record.times and now_s >= record.until_s + out_s(record.times, terms):
        record.times -= 1
        record.until_s = now_s


def failed(record: Record, terms: Ejection, now_s: float, *, ejected: int, hosts: int) -> bool:
    """Book a request that failed and return whether the server is ejected now.

    `ejected` of the `hosts` are out already, and a share of `share_max` may be.
    """
    if now_s < record.until_s:
        return False  # a request that began before
    record.failures += 1
    if record.failures < terms.failures_max or ejected + 1 > int(terms.share_max * hosts):
        return False
    record.times += 1
    record.until_s = now_s + out_s(record.times, terms)
    record.failures = terms.failures_max - 1
    return True


def out_s(times: int, terms: Ejection) -> float:
    """Return how long the ejection number `times` lasts."""
    assert times >= 1
    return min(terms.max_s, terms.base_s * 2.0 ** min(times - 1, 32))
