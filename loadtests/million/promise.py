"""Judges a run: every part of the promise, with the figures that it was judged by."""

from __future__ import annotations

import msgspec

from loadtests.million.fleet import Counts, quantile_ms
from loadtests.node import Status


class Part(msgspec.Struct, frozen=True):
    """One part of the promise."""

    what: str
    kept: bool
    why: str


def of_connecting(devices: int, counts: Counts) -> list[Part]:
    """Judge whether every device is connected."""
    return [_part("every device is connected", counts.up == devices, f"{counts.up:,} of {devices:,}")]


def of_holding(devices: int, counts: Counts, status: Status | None, *, p99_ms: float) -> list[Part]:
    """Judge a hold, once nothing is published any more and all answers had their time."""
    measured_ms = quantile_ms(counts.latencies, 0.99)
    served = status.connections if status is not None else 0
    return [
        _part("no connection was lost", not counts.lost, f"{counts.lost:,} lost"),
        _part(
            "all are connected at the end",
            counts.up == served == devices,
            f"{counts.up:,} by the fleet, {served:,} by the gateway",
        ),
        _part(
            f"99 of 100 acknowledgements within {p99_ms:g} ms",
            0 < measured_ms <= p99_ms,
            f"p99 {measured_ms:.1f} ms",
        ),
    ]


def of_returning(devices: int, counts: Counts, *, within_s: float) -> list[Part]:
    """Judge a reconnect storm: everybody was served again, the last of them in time."""
    took_s = counts.last_back_s - counts.dropped_s
    longest_s = counts.waits_max_us / 1e6
    return [
        _part("every device is served again", counts.back == devices, f"{counts.back:,} of {devices:,}"),
        _part(f"the last within {within_s:g} s", 0 < took_s <= within_s, f"after {took_s:.1f} s"),
        _part("none was lost again", not counts.lost, f"{counts.lost:,} lost"),
        _part(
            f"nobody waited for longer than {within_s / 2:g} s from its first attempt",
            longest_s <= within_s / 2,
            f"at most {longest_s:.1f} s",
        ),
    ]


def of_ledger(counts: Counts, status: Status | None) -> list[Part]:
    """Judge the sums: sent = acknowledged = accepted = delivered.

    What was sent again because the first acknowledgement was lost may be there twice.
    """
    if status is None:
        return [Part("the ledger", False, "the gateway does not answer")]
    acknowledged, resent = counts.acknowledged, counts.resent
    booked = {field: status.booked(field) for field in ("accepted", "delivered", "spooled", "dead_lettered")}
    accepted = booked["accepted"]
    refused = sum(status.refused.values())
    return [
        _part(
            "all that was sent is acknowledged",
            counts.sent == acknowledged > 0 and not counts.strange,
            f"{counts.sent:,} sent, {acknowledged:,} acknowledged, {counts.strange:,} strange answers",
        ),
        _part(
            "all that is acknowledged was accepted",
            acknowledged <= accepted <= acknowledged + resent and accepted == status.accepted,
            f"{accepted:,} in the ledger, {status.accepted:,} counted, {resent:,} were sent again",
        ),
        _part(
            "all that was accepted is delivered",
            booked["delivered"] == accepted == status.delivered
            and not booked["spooled"]
            and not booked["dead_lettered"]
            and not refused,
            f"{booked['delivered']:,} delivered, {booked['spooled']:,} spooled, "
            f"{booked['dead_lettered']:,} dead-lettered, {refused:,} refused",
        ),
    ]


def of_draining(code: int) -> list[Part]:
    """Judge how the gateway ended."""
    return [_part("the gateway drained", code == 0, f"exit code {code}")]


def _part(what: str, kept: bool, why: str) -> Part:  # noqa: FBT001  # it reads as the condition that it is
    return Part(what, bool(kept), why)
