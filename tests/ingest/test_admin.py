from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from ingest import counters
from ingest.admin import HEARTBEAT_MAX_S, Admin, Collector
from ingest.events import Events
from ingest.node_memory import Gauge, MemoryLimits, NodeMemory, WorkerState
from ingest.outcome import REFUSALS, Outcome
from ingest.settings import Node, Settings
from ingest.spool.spool import State
from ingest.spool.store import Store
from runtime import clock

METRICS_GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "metrics.md"
LIMITS = MemoryLimits(tenants_max=4, devices_max=4, sessions_max=4, idempotency_keys_max=4)
WORKERS = 2
Client = TestClient[Any, Any]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[NodeMemory]:
    memory = NodeMemory(WORKERS, LIMITS, tmp_path / "lock")
    for worker in range(WORKERS):
        gauges = memory.gauges(worker)
        gauges[Gauge.PID] = 100.0 + worker
        gauges[Gauge.STATE] = WorkerState.READY
        gauges[Gauge.HEARTBEAT_S] = clock.monotonic_s()
        gauges[Gauge.SINK_READY] = 1.0
        gauges[Gauge.SPOOL_STATE] = list(State).index(State.OPEN)
    yield memory
    os.close(memory._lock_fd)
    for pair in memory.mailboxes:
        for end in pair:
            end.close()


@pytest.fixture
async def client(memory: NodeMemory, tmp_path: Path) -> AsyncIterator[Client]:
    settings = Settings(node=Node(name="n-1", data_dir=str(tmp_path)))
    async with TestClient(TestServer(Admin(memory, settings).application())) as client:
        yield client


def events(memory: NodeMemory, worker: int) -> Events:
    return Events(memory.counters(worker), None)


async def answer(client: Client, path: str) -> tuple[int, dict[str, Any]]:
    async with client.get(path) as response:
        return response.status, await response.json()


async def samples(client: Client) -> dict[str, float]:
    """Return the samples of /metrics by name and labels, as they are written there."""
    async with client.get("/metrics") as response:
        assert response.status == 200
        text = await response.text()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            assert (sample.name, labels) not in found
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_counters_are_summed_over_the_workers(client: Client, memory: NodeMemory) -> None:
    tenant = memory.tenant_index("acme")
    for worker in range(WORKERS):
        events(memory, worker).publishes(tenant, 5)
        events(memory, worker).publish_refused(Outcome.MALFORMED, 2, tenant)
        events(memory, worker).delivered({tenant: 3})
    found = await samples(client)
    assert found["headworks_messages_accepted_total{}"] == 10
    assert found["headworks_messages_refused_total{reason=malformed}"] == 4
    assert found["headworks_messages_refused_total{reason=shed}"] == 0
    assert found["headworks_tenant_messages_accepted_total{tenant=acme}"] == 10
    assert found["headworks_tenant_records_delivered_total{tenant=acme}"] == 6
    assert found["headworks_tenant_messages_refused_total{reason=malformed,tenant=acme}"] == 4


async def test_a_histogram_is_cumulative_and_ends_with_all(client: Client, memory: NodeMemory) -> None:
    events(memory, 0).acknowledged(0.00015, 3)
    events(memory, 1).acknowledged(3600.0, 1)
    found = await samples(client)
    buckets = [value for name, value in found.items() if name.startswith("headworks_acknowledge_seconds_b")]
    assert buckets[0] == 0
    assert buckets == sorted(buckets)
    assert buckets[-2:] == [3, 4]
    assert found["headworks_acknowledge_seconds_count{}"] == 4
    assert found["headworks_acknowledge_seconds_sum{}"] == pytest.approx(3600.00045)


async def test_gauges_are_given_for_each_worker(client: Client, memory: NodeMemory) -> None:
    memory.gauges(1)[Gauge.CONNECTIONS] = 7.0
    found = await samples(client)
    assert found["headworks_connections{worker=0}"] == 0
    assert found["headworks_connections{worker=1}"] == 7


async def test_tenants_make_no_more_series_than_their_limit(client: Client, memory: NodeMemory) -> None:
    for number in range(50):
        events(memory, 0).publishes(memory.tenant_index(f"tenant-{number}"), 1)
    found = await samples(client)
    series = {n: v for n, v in found.items() if n.startswith("headworks_tenant_messages_accepted_total")}
    assert len(series) == LIMITS.tenants_max
    assert series["headworks_tenant_messages_accepted_total{tenant=(other)}"] == 47
    assert sum(series.values()) == 50


def test_every_metric_is_in_the_guide(memory: NodeMemory) -> None:
    guide = METRICS_GUIDE.read_text()
    for metric in Collector(memory).collect():
        # The library takes the end of a counter's name away, and gives it back when it is served.
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"| `{name}` |" in guide
    for family in counters.COUNTERS:
        assert all(f"`{value}`" in guide for value in family.values if value)


async def test_a_node_is_healthy_while_one_worker_answers(client: Client, memory: NodeMemory) -> None:
    long_ago_s = clock.monotonic_s() - HEARTBEAT_MAX_S - 1
    assert await answer(client, "/healthz") == (200, {"healthy": True, "workers_alive": 2})
    memory.gauges(0)[Gauge.HEARTBEAT_S] = long_ago_s
    assert await answer(client, "/healthz") == (200, {"healthy": True, "workers_alive": 1})
    memory.gauges(1)[Gauge.HEARTBEAT_S] = long_ago_s
    assert await answer(client, "/healthz") == (503, {"healthy": False, "workers_alive": 0})


async def test_a_node_is_ready_when_all_its_workers_are(client: Client) -> None:
    assert await answer(client, "/readyz") == (200, {"ready": True, "reasons": []})


@pytest.mark.parametrize(
    ("gauge", "value", "reason"),
    [
        (Gauge.STATE, WorkerState.ABSENT, "worker 1 is absent"),
        (Gauge.STATE, WorkerState.STARTING, "worker 1 is starting"),
        (Gauge.STATE, WorkerState.DRAINING, "worker 1 is draining"),
        (Gauge.STATE, WorkerState.DRAINED, "worker 1 is drained"),
        (Gauge.HEARTBEAT_S, 0.0, "worker 1 does not answer"),
        (Gauge.SINK_READY, 0.0, "the sink of worker 1 takes nothing"),
        *(
            (Gauge.SPOOL_STATE, list(State).index(state), f"the spool of worker 1 is {state.value}")
            for state in State
            if state is not State.OPEN
        ),
    ],
)
async def test_what_keeps_a_node_from_being_ready_is_named(
    client: Client, memory: NodeMemory, gauge: Gauge, value: float, reason: str
) -> None:
    memory.gauges(1)[gauge] = value
    status, body = await answer(client, "/readyz")
    assert status == 503
    assert not body["ready"]
    assert reason in body["reasons"]
    _, seen = await answer(client, "/status")
    assert not seen["ready"]
    assert reason in seen["not_ready"]


async def test_the_status_sums_up_the_node(client: Client, memory: NodeMemory) -> None:
    tenant = memory.tenant_index("acme")
    for worker in range(WORKERS):
        events(memory, worker).publishes(tenant, 5)
        events(memory, worker).worker_started()
        memory.gauges(worker)[Gauge.CONNECTIONS] = 4.0
    events(memory, 0).delivered({tenant: 3})
    events(memory, 0).publish_refused(Outcome.SHED, 2, tenant)
    events(memory, 0).acknowledged(0.001, 10)
    status, body = await answer(client, "/status")
    assert status == 200
    assert body["node"] == "n-1"
    assert body["ready"] is True
    assert [(w["worker"], w["pid"], w["state"], w["starts"]) for w in body["workers"]] == [
        (0, 100, "ready", 1),
        (1, 101, "ready", 1),
    ]
    assert (body["connections"], body["accepted"], body["delivered"]) == (8, 10, 3)
    assert body["refused"] == {"shed": 2}
    assert body["acknowledge_p50_s"] == pytest.approx(0.001, rel=0.5)
    assert body["tenants"]["acme"]["accepted"] == 10
    assert set(body["tenants"]["acme"]) == {
        "accepted",
        "delivered",
        "dead_lettered",
        *(outcome.name.lower() for outcome in REFUSALS),
    }
    assert body["ledger"] == {}


async def test_a_spool_that_cannot_be_read_does_not_hide_the_rest(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "worker-0"
    folder.mkdir()
    (folder / "spool.db").write_bytes(b"this is no database, whatever its name says" * 100)
    status, body = await answer(client, "/status")
    assert status == 200
    assert body["ledger"] == {}
    assert "cannot read" in body["ledger_error"]
    assert body["ready"] is True


async def test_the_status_reads_the_spools_of_all_workers(client: Client, tmp_path: Path) -> None:
    for worker in range(WORKERS):
        Store(tmp_path / f"worker-{worker}" / "spool.db").close()
    _, body = await answer(client, "/status")
    assert body["ledger"] == {}
    assert "ledger_error" not in body


async def test_nothing_else_is_served(client: Client) -> None:
    for path in ("/", "/metrics/x", "/debug"):
        async with client.get(path) as response:
            assert response.status == 404
    async with client.post("/readyz") as response:
        assert response.status == 405
