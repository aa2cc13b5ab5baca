"""Judges a campaign: every part of its promise, with the figures that it was judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from loadtests.ledger import Verdict
from loadtests.million.promise import Part
from loadtests.node import Status
from loadtests.plan import Plan
from loadtests.users.result import Measured, Result


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that a campaign is judged by."""

    result: Result
    verdict: Verdict | None
    """None where the sink cannot be read: then only sums are judged."""
    status: Status | None
    handshakes_failed: Mapping[str, int] = {}
    restarted: bool = False
    """The whole node was killed: its counters began anew."""
    foreign: bool = False
    """The node has other peers, and a past."""
    grown_mb: float | None = None
    spooled: int | None = None
    """How many messages waited at the end of an outage of the sink, None without one."""


MQTT_SAYS: Final = {
    "not_authorised": {"not_authorised", "suspended"},
    "over_limit": {"device_limit", "tenant_limit", "spool_full"},
    "content": {"malformed", "too_large"},
}
"""MQTT has fewer words for a refusal than the gateway has names."""


def judge(plan: Plan, evidence: Evidence) -> list[Part]:
    """Return every part of the promise."""
    parts = [*_of_the_fleet(plan, evidence.result)]
    if evidence.verdict is not None:
        parts += _of_the_ledger(plan, evidence.verdict)
    parts += _of_the_books(evidence)
    parts += _of_refusals(plan, evidence)
    parts.append(_of_latency(plan, evidence.result))
    if plan.promise.back_within_s is not None:
        parts.append(_of_coming_back(plan.promise.back_within_s, evidence.result))
    parts += _of_those_turned_away(plan, evidence)
    if any(event.what == "sink_outage" for event in plan.events):
        waited = evidence.spooled or 0
        parts.append(Part("messages waited while the sink was away", waited > 0, f"{waited:,} did"))
    if plan.promise.gateway_mb_max is not None and evidence.grown_mb is not None:
        grown, most = evidence.grown_mb, plan.promise.gateway_mb_max
        parts.append(Part(f"the gateway grew by at most {most:g} MB", grown <= most, f"by {grown:.0f} MB"))
    return parts


def _of_the_fleet(plan: Plan, result: Result) -> Iterable[Part]:
    figures = result.figures
    yield Part(
        "the load test ran as planned",
        not result.exceptions and result.handed_over and not figures.strange,
        f"{len(result.exceptions)} exceptions, {figures.strange} strange answers"
        + ("" if result.handed_over else ", a worker did not hand over its ledger")
        + (f": {result.exceptions[0]}" if result.exceptions else ""),
    )
    wanted = plan.devices
    yield Part(
        "the whole fleet was there",
        0.9 * wanted <= figures.devices <= 1.1 * wanted + 10,
        f"{figures.devices:,} devices of {wanted:,}",
    )
    yield Part(
        "every message was answered", result.settled and not figures.open, f"{figures.open:,} were not"
    )


def _of_the_ledger(plan: Plan, verdict: Verdict) -> Iterable[Part]:
    promise = plan.promise
    examples = verdict.examples
    yield Part(
        f"lost at most {promise.lost_max}",
        verdict.lost <= promise.lost_max and verdict.acknowledged > 0,
        f"{verdict.lost:,} of {verdict.acknowledged:,} acknowledged" + _such_as(examples, "lost"),
    )
    yield Part(
        "in order per device",
        not verdict.out_of_order,
        f"{verdict.out_of_order:,} of {verdict.delivered:,} out of order"
        + _such_as(examples, "out_of_order"),
    )
    most = verdict.repeated if promise.duplicates_max is None else promise.duplicates_max
    yield Part(
        f"at most {most:,} duplicates, of what was sent again only",
        verdict.duplicates <= most and not verdict.unexplained,
        f"{verdict.duplicates:,} of {verdict.repeated:,} sent again, {verdict.unexplained:,} of others"
        + _such_as(examples, "unexplained"),
    )
    yield Part(
        "nothing came that nobody sent",
        not verdict.uninvited,
        f"{verdict.uninvited:,} did" + _such_as(examples, "uninvited"),
    )


def _of_the_books(evidence: Evidence) -> Iterable[Part]:
    """Judge the gateway's own ledger: accepted = delivered, and at least what was acknowledged."""
    status = evidence.status
    if status is None:
        yield Part("the gateway answers at the end", False, "it does not")
        return
    accepted, delivered = status.booked("accepted"), status.booked("delivered")
    left = status.booked("spooled") + status.booked("dead_lettered")
    acknowledged = sum(row.acknowledged for rows in evidence.result.rows.values() for row in rows)
    repeated = sum(len(row.repeated) for rows in evidence.result.rows.values() for row in rows)
    unanswered = sum(len(row.unanswered) for rows in evidence.result.rows.values() for row in rows)
    yield Part(
        "accepted = delivered, by the gateway's ledger",
        accepted == delivered and not left,
        f"{accepted:,} accepted, {delivered:,} delivered, {left:,} spooled or dead letters",
    )
    if not evidence.foreign:
        yield Part(
            "all that was acknowledged was accepted, and little more",
            acknowledged <= accepted <= acknowledged + repeated + unanswered,
            f"{acknowledged:,} acknowledged, {repeated:,} of them sent again",
        )


def _of_refusals(plan: Plan, evidence: Evidence) -> Iterable[Part]:
    """Judge that only the groups were refused that may be, for what they may be."""
    heard: dict[str, int] = {}
    for group in plan.groups:
        allowed = {word for name in group.refused for word in _words(name)}
        for row in evidence.result.rows.get(group.name, ()):
            for reason in row.refused.values():
                key = "expected" if reason in allowed else f"{group.name}: {reason}"
                heard[key] = heard.get(key, 0) + 1
    expected = heard.pop("expected", 0)
    repeated = sum(len(row.repeated) for rows in evidence.result.rows.values() for row in rows)
    names = sorted({name for group in plan.groups for name in group.refused})
    yield Part(
        f"refused only: {', '.join(names)}" if names else "nothing was refused",
        not heard and bool(expected) == bool(names),
        ", ".join(f"{name} {count:,}" for name, count in heard.items()) or f"{expected:,} as expected",
    )
    status = evidence.status
    if status is not None and names and not evidence.restarted and not evidence.foreign:
        counted = {name: status.refused.get(name, 0) for name in names}
        others = sum(status.refused.values()) - sum(counted.values())
        yield Part(
            "the gateway counts the same refusals, by name",
            all(counted.values()) and not others and 0 <= sum(counted.values()) - expected <= repeated,
            ", ".join(f"{name} {count:,}" for name, count in counted.items()) + f", others {others:,}",
        )


def _words(name: str) -> set[str]:
    """Return how devices hear a refusal that the gateway calls `name`."""
    return {name, *(word for word, names in MQTT_SAYS.items() if name in names)}


def _of_latency(plan: Plan, result: Result) -> Part:
    names = {group.name for group in plan.groups if group.judged and group.speaks != "api"}
    histogram = merged(entry for entry in result.measured if entry.name in names)
    p99 = quantile_ms(histogram, 0.99)
    most = plan.promise.p99_ms
    return Part(
        f"99 of 100 answers within {most:g} ms",
        bool(histogram) and p99 <= most,
        f"p99 {p99:g} ms, p50 {quantile_ms(histogram, 0.5):g} ms of {sum(histogram.values()):,}",
    )


def merged(entries: Iterable[Measured]) -> dict[int, int]:
    """Return the histogram of all entries; keys are ms, rounded to two digits as Locust does."""
    histogram: dict[int, int] = {}
    for entry in entries:
        for time_ms, count in entry.histogram.items():
            histogram[time_ms] = histogram.get(time_ms, 0) + count
    return histogram


def quantile_ms(histogram: Mapping[int, int], share: float) -> float:
    """Return the time that `share` of the answers took at most; 0 without any."""
    rank = share * sum(histogram.values())
    seen = 0
    for time_ms in sorted(histogram):
        seen += histogram[time_ms]
        if seen >= rank:
            return float(time_ms)
    return 0.0


def _of_coming_back(within_s: float, result: Result) -> Part:
    back = [entry for entry in result.measured if entry.name.endswith(" back")]
    count = sum(entry.count for entry in back)
    longest_s = result.figures.back_longest_s
    return Part(
        f"served again within {within_s:g} s of a lost connection",
        count > 0 and longest_s <= within_s,
        f"{count:,} times, the longest after {longest_s:.1f} s",
    )


def _of_those_turned_away(plan: Plan, evidence: Evidence) -> Iterable[Part]:
    groups = [group.name for group in plan.groups if group.turned_away]
    if groups:
        sent = sum(row.sent for name in groups for row in evidence.result.rows.get(name, ()))
        times = evidence.result.figures.turned_away
        yield Part(
            f"turned away: {', '.join(groups)}",
            times > 0 and not sent,
            f"{times:,} times; {sent:,} messages got in",
        )
    names = plan.promise.handshakes_failed
    if names:
        counted = {name: evidence.handshakes_failed.get(name, 0) for name in names}
        yield Part(
            "the gateway counts why handshakes failed",
            all(counted.values()),
            ", ".join(f"{name} {count:,}" for name, count in counted.items()),
        )


def _such_as(examples: Mapping[str, Sequence[str]], what: str) -> str:
    some = examples.get(what)
    return f", e.g. {', '.join(some)}" if some else ""
