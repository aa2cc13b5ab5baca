from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest import counters
from ingest.http.idempotency import Idempotency, Known
from ingest.node_memory import (
    MESSAGE_BYTES_MAX,
    OTHER_TENANTS,
    SESSION_VALUE,
    Gauge,
    MemoryLimits,
    NodeMemory,
    WorkerState,
)
from ingest.routes import NAME, NAME_CHARACTERS_MAX
from routing.limits.allowance import row_bytes, table_key
from routing.limits.shared_table import TableFullError
from routing.tenancy.identity import Credential, Identity, Kind
from runtime import clock

LIMITS = MemoryLimits(tenants_max=4, devices_max=8, sessions_max=1, idempotency_keys_max=1)
IDENTITY = Identity(tenant="acme", name="d", kind=Kind.DEVICE, credential=Credential.CERTIFICATE)


class Making:
    """Makes memories, and gives back what they hold of the system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[NodeMemory] = []

    def __call__(self, workers: int, limits: MemoryLimits = LIMITS) -> NodeMemory:
        memory = NodeMemory(workers, limits, self._folder / f"{len(self._made)}.lock")
        self._made.append(memory)
        return memory

    def close(self) -> None:
        for memory in self._made:
            os.close(memory._lock_fd)
            for pair in memory.mailboxes:
                for end in pair:
                    end.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Making]:
    making = Making(tmp_path)
    yield making
    making.close()


def in_a_child(main: Callable[[], None]) -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            main()
            code = 0
        except BaseException:  # noqa: BLE001  # a child of a test must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_a_worker_counts_is_seen_by_all_and_outlives_it(make: Making) -> None:
    memory = make(2)

    def work() -> None:
        memory.counters(1)[counters.ACCEPTED] += 7
        memory.gauges(1)[Gauge.CONNECTIONS] = 3.0

    in_a_child(work)
    in_a_child(work)
    assert memory.figures(1).counters[counters.ACCEPTED] == 14
    assert memory.figures(1).gauges[Gauge.CONNECTIONS] == 3.0
    assert not any(memory.figures(0).counters)
    assert not any(memory.figures(0).gauges)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_part_of_the_memory_reaches_into_another(make: Making, workers: int) -> None:
    memory = make(workers)
    for worker in range(workers):
        block, gauges = memory.counters(worker), memory.gauges(worker)
        for place in range(len(block)):
            block[place] = -1
        for place in range(len(gauges)):
            gauges[place] = -1.0
    assert memory.tenant_names() == {OTHER_TENANTS: "(other)"}
    for table in (memory.devices, memory.tenants, memory.sessions, memory.idempotency):
        assert not list(table.items())
    assert memory.tenant_index("x" * NAME_CHARACTERS_MAX) == 1
    for kind, table in (("d", memory.devices), ("t", memory.tenants)):
        table.put(table_key(kind), b"\xff" * row_bytes(workers))
    memory.sessions.put(table_key("s"), b"\xff" * SESSION_VALUE.size)
    memory.idempotency.put(table_key("i"), b"\xff" * 64)
    for worker in range(workers):
        assert set(memory.figures(worker).counters) == {-1}
        assert set(memory.figures(worker).gauges) == {-1.0}
    assert memory.tenant_names() == {OTHER_TENANTS: "(other)", 1: "x" * NAME_CHARACTERS_MAX}


def test_a_dead_worker_has_no_connections_but_keeps_its_spool_and_epoch(make: Making) -> None:
    memory = make(2)
    for worker in range(2):
        for gauge in Gauge:
            memory.gauges(worker)[gauge] = 2.0
    memory.worker_gone(1)
    gauges = memory.figures(1).gauges
    assert WorkerState(int(gauges[Gauge.STATE])) is WorkerState.ABSENT
    assert gauges[Gauge.CONNECTIONS] == gauges[Gauge.SINK_READY] == gauges[Gauge.HEARTBEAT_S] == 0.0
    assert gauges[Gauge.SPOOL_BYTES] == gauges[Gauge.EPOCH] == gauges[Gauge.TLS_NOT_AFTER_S] == 2.0
    assert set(memory.figures(0).gauges) == {2.0}


def test_a_tenant_has_the_same_index_in_every_process(make: Making) -> None:
    memory = make(2)

    def other_worker() -> None:
        assert memory.tenant_index("b") == 1
        assert memory.tenant_index("a") == 2

    in_a_child(other_worker)
    assert memory.tenant_index("a") == 2
    assert memory.tenant_index("b") == 1
    assert memory.tenant_index("c") == 3
    assert memory.tenant_names() == {OTHER_TENANTS: "(other)", 1: "b", 2: "a", 3: "c"}


def test_tenants_beyond_the_limit_are_counted_together_in_every_process(make: Making) -> None:
    memory = make(2)

    def other_worker() -> None:
        for name in ("a", "b", "c"):
            memory.tenant_index(name)

    in_a_child(other_worker)
    assert memory.tenant_index("d") == OTHER_TENANTS
    assert memory.tenant_index("c") == 3, "known to the others, and so to us"
    assert memory.tenant_index("e") == OTHER_TENANTS


def test_who_has_no_name_takes_no_place_among_the_tenants(make: Making) -> None:
    """An identity that only the topic names has none; its entry would end the directory for the others."""
    memory = make(2)
    assert memory.tenant_index("") == OTHER_TENANTS
    assert memory.tenant_index("a") == 1
    in_a_child(lambda: None if memory.tenant_index("b") == 2 else os.abort())
    assert memory.tenant_names() == {OTHER_TENANTS: "(other)", 1: "a", 2: "b"}


@pytest.mark.parametrize("name", ["x" * (NAME_CHARACTERS_MAX + 1), "é", "a b", "a/b", "a\n"])
def test_what_is_no_name_in_a_topic_is_counted_with_the_others(make: Making, name: str) -> None:
    memory = make(1)
    assert memory.tenant_index(name) == OTHER_TENANTS
    assert memory.tenant_index("a") == 1


@hypothesis_settings(max_examples=30, deadline=None)
@given(names=st.lists(st.from_regex(NAME, fullmatch=True), unique=True, max_size=8))
def test_every_name_comes_back_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    making = Making(tmp_path_factory.mktemp("memory"))
    try:
        memory = making(
            1, MemoryLimits(tenants_max=16, devices_max=1, sessions_max=1, idempotency_keys_max=1)
        )
        indexes = {memory.tenant_index(name): name for name in names}
        assert memory.tenant_names() == {OTHER_TENANTS: "(other)"} | indexes
        assert len(indexes) == len(names)
    finally:
        making.close()


@pytest.mark.parametrize(
    ("worker", "epoch", "ends_in_s", "makes_room"),
    [
        (0, 5.0, None, False),  # connected
        (0, 4.0, None, True),  # connected to a worker that died
        (0, 4.0, 60.0, False),  # kept by its expiry, over a restart
        (0, 5.0, -1.0, True),  # ended
    ],
)
def test_a_session_makes_room_once_it_is_over(
    make: Making, worker: int, epoch: float, ends_in_s: float | None, *, makes_room: bool
) -> None:
    memory = make(1)
    memory.gauges(0)[Gauge.EPOCH] = 5.0
    ends_s = 0.0 if ends_in_s is None else clock.unix_s() + ends_in_s
    memory.sessions.put(table_key("old"), SESSION_VALUE.pack(worker, int(epoch), ends_s))
    new = SESSION_VALUE.pack(0, 5, 0.0)
    if makes_room:
        memory.sessions.put(table_key("new"), new)
        assert memory.sessions.get(table_key("new")) == new
    else:
        with pytest.raises(TableFullError):
            memory.sessions.put(table_key("new"), new)


def test_an_idempotency_key_makes_room_once_it_has_expired(make: Making) -> None:
    memory = make(1)
    keys = Idempotency(
        memory.idempotency,
        node="n",
        worker=0,
        epoch=1,
        boot="b",
        unsettled=lambda *_: True,
        full=lambda: None,
        keep_s=60.0,
    )
    now_s, digest = clock.unix_s(), bytes(8)
    keys.begin(IDENTITY, "first", digest, now_s - 61.0)
    keys.begin(IDENTITY, "second", digest, now_s)
    assert keys.begin(IDENTITY, "second", digest, now_s)[0] is Known.UNDER_WAY, (
        "it took the place of the first"
    )
    keys.begin(IDENTITY, "third", digest, now_s)
    assert keys.begin(IDENTITY, "third", digest, now_s)[0] is Known.NEW, "no room: the second is still good"


@pytest.mark.parametrize(
    ("epoch", "state", "unsettled"),
    [
        (1, WorkerState.READY, True),
        (1, WorkerState.ABSENT, True),  # died a moment ago
        (2, WorkerState.ABSENT, True),
        (2, WorkerState.STARTING, True),  # its spool is being read
        (2, WorkerState.READY, False),
        (2, WorkerState.DRAINING, False),
    ],
)
def test_what_a_worker_began_is_settled_once_its_successor_is_ready(
    make: Making, epoch: int, state: WorkerState, unsettled: bool
) -> None:
    memory = make(1)
    memory.gauges(0)[Gauge.EPOCH] = epoch
    memory.gauges(0)[Gauge.STATE] = state
    assert memory.unsettled(0, 1) is unsettled
    assert not memory.unsettled(1, 1), "there is no such worker any more"


def test_a_message_reaches_the_worker_it_is_for(make: Making) -> None:
    memory = make(2)
    in_a_child(lambda: None if memory.post(1, b"hello") else os.abort())
    assert memory.mailboxes[1][0].recv(100) == b"hello"
    with pytest.raises(BlockingIOError):
        memory.mailboxes[0][0].recv(100)


def test_the_longest_message_passes_whole_and_a_longer_one_not_at_all(make: Making) -> None:
    memory = make(1)
    assert memory.post(0, bytes(MESSAGE_BYTES_MAX))
    assert len(memory.mailboxes[0][0].recv(MESSAGE_BYTES_MAX + 1)) == MESSAGE_BYTES_MAX
    assert not memory.post(0, bytes(MESSAGE_BYTES_MAX + 1))


def test_a_full_mailbox_refuses(make: Making) -> None:
    memory = make(1)
    taken = 0
    while memory.post(0, b"x" * 1000):
        taken += 1
        assert taken < 10_000
    assert taken > 1
    for _ in range(taken):
        memory.mailboxes[0][0].recv(2000)
    assert memory.post(0, b"y")


def test_a_mailbox_that_is_gone_is_not_mistaken_for_a_full_one(make: Making) -> None:
    memory = make(1)
    memory.mailboxes[0][0].close()
    with pytest.raises(OSError, match=r"refused|reset|not connected|Broken"):
        memory.post(0, b"x")
