"""The admin endpoints of a node, in a process of their own: /metrics /healthz /readyz /status.

It reads the memory that the workers write and their spools, and writes nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ingest import counters
from ingest.counters import Histogram
from ingest.node_memory import Figures, Gauge, NodeMemory, WorkerState
from ingest.settings import Settings
from ingest.spool.inspect import ledger
from ingest.spool.spool import State
from ingest.spool.store import SpoolError
from runtime import clock
from runtime.settings_file import split_bind

HEARTBEAT_MAX_S: Final = 5.0
SHUTDOWN_S: Final = 1.0
GAUGE_HELP: Final = {
    Gauge.LOOP_LAG_S: ("worker_loop_lag_seconds", "How late the event loop is, smoothed."),
    Gauge.CONNECTIONS: ("connections", "Open connections."),
    Gauge.SPOOL_BYTES: ("spool_bytes", "Bytes of groups that wait for delivery."),
    Gauge.SPOOL_GROUPS: ("spool_groups", "Groups that wait for delivery."),
    Gauge.SPOOL_OLDEST_S: ("spool_oldest_seconds", "Age of the oldest group that waits."),
    Gauge.DEAD_LETTERS: ("dead_letters", "Dead letters that are kept."),
    Gauge.DEAD_LETTERS_BYTES: ("dead_letters_bytes", "Bytes of the dead letters that are kept."),
    Gauge.SINK_READY: ("sink_ready", "Whether the sink takes records."),
    Gauge.SINK_PENDING_RECORDS: ("sink_pending_records", "Records in the sink's hands."),
    Gauge.SINK_PENDING_BYTES: ("sink_pending_bytes", "Bytes in the sink's hands."),
    Gauge.SINK_OPEN_CIRCUITS: ("sink_open_circuits", "Circuit breakers that are open."),
    Gauge.TLS_NOT_AFTER_S: ("tls_certificate_not_after_seconds", "When the certificate ends, Unix time."),
    Gauge.TLS_CRL_NEXT_UPDATE_S: (
        "tls_crl_next_update_seconds",
        "When the revocation list ends, Unix time; 0 without one.",
    ),
    Gauge.TLS_RELOAD_FAILED: (
        "tls_reload_failed",
        "1 while certificate files on disk could not be loaded and the previous set is in use.",
    ),
}
TENANT_METRICS: Final = (
    ("tenant_messages_accepted_total", "Messages accepted, by tenant."),
    ("tenant_records_delivered_total", "Records delivered, by tenant."),
    ("tenant_records_dead_lettered_total", "Accepted records that were dead-lettered, by tenant."),
)


class Collector:
    """Gives Prometheus what the workers have counted."""

    def __init__(self, memory: NodeMemory) -> None:
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of the node."""
        figures = [self._memory.figures(worker) for worker in range(self._memory.workers)]
        sums = [sum(column) for column in zip(*(each.counters for each in figures), strict=True)]
        for family in counters.COUNTERS:
            metric = CounterMetricFamily(
                f"headworks_{family.name}", family.help, labels=[family.label] if family.label else []
            )
            for value in family.values:
                count = sums[counters.offset(family.name, value)]
                metric.add_metric([value] if family.label else [], count)
            yield metric
        yield from (_histogram(each, sums) for each in counters.HISTOGRAMS)
        yield from self._tenants(sums)
        for gauge, (name, text) in GAUGE_HELP.items():
            of_gauge = GaugeMetricFamily(f"headworks_{name}", text, labels=["worker"])
            for worker, each in enumerate(figures):
                of_gauge.add_metric([str(worker)], each.gauges[gauge])
            yield of_gauge

    def _tenants(self, sums: list[int]) -> Iterator[Metric]:
        names = self._memory.tenant_names()
        metrics = [
            CounterMetricFamily(f"headworks_{name}", text, labels=["tenant"]) for name, text in TENANT_METRICS
        ]
        refused = CounterMetricFamily(
            "headworks_tenant_messages_refused_total",
            "Messages refused, by tenant and reason.",
            labels=["tenant", "reason"],
        )
        for index, tenant in names.items():
            fields = _tenant_fields(sums, index)
            for metric, (_, count) in zip(metrics, list(fields.items()), strict=False):
                metric.add_metric([tenant], count)
            for reason in counters.REFUSED_VALUES:
                if fields[reason]:
                    refused.add_metric([tenant, reason], fields[reason])
        yield from metrics
        yield refused


def _tenant_fields(sums: list[int], index: int) -> dict[str, int]:
    start = counters.tenant_start(index)
    return dict(zip(counters.TENANT_FIELDS, sums[start : start + counters.TENANT_STRIDE], strict=True))


def _histogram(histogram: Histogram, sums: list[int]) -> HistogramMetricFamily:
    seen = accumulate(histogram.buckets(sums))
    bounds = [*(f"{bound:.6g}" for bound in histogram.bounds), "+Inf"]
    metric = HistogramMetricFamily(f"headworks_{histogram.name}", histogram.help)
    metric.add_metric([], list(zip(bounds, seen, strict=True)), sum_value=histogram.total(sums))
    return metric


class Admin:
    """The admin process."""

    def __init__(self, memory: NodeMemory, settings: Settings) -> None:
        self._memory = memory
        self._settings = settings
        self._registry = CollectorRegistry()
        self._registry.register(Collector(memory))

    def application(self) -> web.Application:
        """Return what is served."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        return app

    async def run(self) -> int:
        """Serve until SIGTERM."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        host, port = split_bind(self._settings.admin.bind)
        site = web.TCPSite(runner, host, port)
        await site.start()
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        await over.wait()
        await runner.cleanup()
        return 0

    def _workers(self) -> list[Figures]:
        return [self._memory.figures(worker) for worker in range(self._memory.workers)]

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        now_s = clock.monotonic_s()
        alive = [now_s - worker.gauges[Gauge.HEARTBEAT_S] < HEARTBEAT_MAX_S for worker in self._workers()]
        return _json({"healthy": any(alive), "workers_alive": sum(alive)}, 200 if any(alive) else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        reasons = self._not_ready()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    def _not_ready(self) -> list[str]:
        reasons = []
        states = list(State)
        now_s = clock.monotonic_s()
        for index, worker in enumerate(self._workers()):
            gauges = worker.gauges
            state = WorkerState(int(gauges[Gauge.STATE]))
            if state is not WorkerState.READY:
                reasons.append(f"worker {index} is {state.name.lower()}")
            elif now_s - gauges[Gauge.HEARTBEAT_S] > HEARTBEAT_MAX_S:
                reasons.append(f"worker {index} does not answer")
            spool_state = states[int(gauges[Gauge.SPOOL_STATE])]
            if spool_state is not State.OPEN:
                reasons.append(f"the spool of worker {index} is {spool_state.value}")
            if state is WorkerState.READY and not gauges[Gauge.SINK_READY] and gauges[Gauge.HEARTBEAT_S]:
                reasons.append(f"the sink of worker {index} takes nothing")
        return reasons

    async def _status(self, request: web.Request) -> web.Response:
        del request
        figures = self._workers()
        sums = [sum(column) for column in zip(*(each.counters for each in figures), strict=True)]
        not_ready = self._not_ready()
        body = {
            "node": self._settings.node.name,
            "ready": not not_ready,
            "not_ready": not_ready,
            "workers": [
                {
                    "worker": index,
                    "pid": int(worker.gauges[Gauge.PID]),
                    "state": WorkerState(int(worker.gauges[Gauge.STATE])).name.lower(),
                    "starts": worker.counters[counters.offset("worker_starts_total")],
                    "connections": int(worker.gauges[Gauge.CONNECTIONS]),
                    "loop_lag_s": worker.gauges[Gauge.LOOP_LAG_S],
                }
                for index, worker in enumerate(figures)
            ],
            "connections": int(sum(worker.gauges[Gauge.CONNECTIONS] for worker in figures)),
            "accepted": sums[counters.ACCEPTED],
            "delivered": sums[counters.DELIVERED],
            "refused": {
                reason: sums[counters.offset("messages_refused_total", reason)]
                for reason in counters.REFUSED_VALUES
                if sums[counters.offset("messages_refused_total", reason)]
            },
            "spool_bytes": int(sum(worker.gauges[Gauge.SPOOL_BYTES] for worker in figures)),
            "acknowledge_p50_s": counters.ACKNOWLEDGE_S.quantile(sums, 0.5),
            "acknowledge_p99_s": counters.ACKNOWLEDGE_S.quantile(sums, 0.99),
            "tenants": {
                tenant: _tenant_fields(sums, index)
                for index, tenant in self._memory.tenant_names().items()
                if any(_tenant_fields(sums, index).values())
            },
            **await self._booked(),
        }
        return _json(body, 200)

    async def _booked(self) -> dict[str, Any]:
        """Return what the spools have booked, or why they cannot be read."""
        try:
            booked = await asyncio.to_thread(ledger, Path(self._settings.node.data_dir))
        except SpoolError as error:
            return {"ledger": {}, "ledger_error": str(error)}
        return {"ledger": {tenant: msgspec.to_builtins(entry) for tenant, entry in booked.items()}}


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json", charset="utf-8"
    )
