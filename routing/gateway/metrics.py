"""What Prometheus is told of the gateway: plain counts, added to in place, read when they are asked for.

Labels are from closed sets: routes of the routes file (of which `routes_max` are told apart), status classes,
slugs of refusals. Names of tenants, devices and keys are in the access log and the usage report.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from routing.gateway.exchange import Exchange

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
NO_ROUTE: Final = ""
OTHER: Final = "other"
SLUGS_MAX: Final = 256
Gauges = Callable[[], Mapping[tuple[str, str], float]]
"""Returns values by (name, help)."""


class Figures:
    """The counts of one route."""

    __slots__ = ("attempts", "buckets", "bytes_in", "bytes_out", "cached", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.attempts = 0
        self.cached = 0


class Metrics:
    """The counts of this process; a Prometheus collector."""

    def __init__(self, *, routes_max: int, gauges: Gauges) -> None:
        self._routes_max = routes_max
        self._gauges = gauges
        self._of_route: dict[str, Figures] = {}
        self._refused: dict[str, int] = {}
        self._turned_away: dict[str, int] = {}
        self._reloads = {"taken": 0, "refused": 0}
        self._errors = 0

    def record(self, exchange: Exchange, now_s: float) -> None:
        """Count a request that is over."""
        name = exchange.route.name if exchange.route is not None else NO_ROUTE
        figures = self._of_route.get(name)
        if figures is None:
            if len(self._of_route) >= self._routes_max:
                name = OTHER
            figures = self._of_route.setdefault(name, Figures())
        took_s = now_s - exchange.received_s
        status = exchange.status
        figures.statuses[status] = figures.statuses.get(status, 0) + 1
        figures.buckets[bisect_left(BOUNDS_S, took_s)] += 1
        figures.seconds += took_s
        figures.bytes_in += exchange.bytes_in
        figures.bytes_out += exchange.bytes_out
        figures.attempts += exchange.attempts
        figures.cached += exchange.cached
        if exchange.refused:
            self.refused(exchange.refused)

    def refused(self, slug: str) -> None:
        """Count a refusal."""
        if slug not in self._refused and len(self._refused) >= SLUGS_MAX:
            slug = OTHER
        self._refused[slug] = self._refused.get(slug, 0) + 1

    def turned_away(self, reason: str) -> None:
        """Count a connection that was not taken."""
        self._turned_away[reason] = self._turned_away.get(reason, 0) + 1

    def reloaded(self, *, taken: bool) -> None:
        """Count a routes file that was read again."""
        self._reloads["taken" if taken else "refused"] += 1

    def failed(self) -> None:
        """Count an error that should not be."""
        self._errors += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        requests = CounterMetricFamily("headworks_api_requests", "Requests.", labels=["route", "status"])
        seconds = HistogramMetricFamily(
            "headworks_api_request_seconds", "From the head of a request to its answer.", labels=["route"]
        )
        of_route = {
            name: CounterMetricFamily(f"headworks_api_{name}", text, labels=["route"])
            for name, text in (
                ("bytes_in", "Bytes of bodies of requests."),
                ("bytes_out", "Bytes of bodies of answers."),
                ("attempts", "Requests to upstreams, with retries and hedges."),
                ("cached", "Requests answered from the cache."),
            )
        }
        for name, figures in self._of_route.items():
            for status, count in figures.statuses.items():
                requests.add_metric([name, str(status)], count)
            seen = accumulate(figures.buckets)
            bounds = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
            seconds.add_metric([name], list(zip(bounds, seen, strict=True)), sum_value=figures.seconds)
            for kind, metric in of_route.items():
                metric.add_metric([name], getattr(figures, kind))
        yield requests
        yield seconds
        yield from of_route.values()
        yield _counter("refused", "Requests refused, by reason.", "reason", self._refused)
        yield _counter("connections_refused", "Connections not taken.", "reason", self._turned_away)
        yield _counter("reloads", "Routes files read again.", "outcome", self._reloads)
        errors = CounterMetricFamily("headworks_api_errors", "Errors that should not be possible.")
        errors.add_metric([], self._errors)
        yield errors
        for (name, text), value in self._gauges().items():
            yield GaugeMetricFamily(f"headworks_api_{name}", text, value=value)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(f"headworks_api_{name}", text, labels=[label])
    for value, count in counts.items():
        metric.add_metric([value], count)
    return metric
