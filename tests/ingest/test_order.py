"""Whatever workers a device moves between, what was acknowledged first is delivered first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.order import WAYS, Homes, Order, Progress
from ingest.records import After

WORKERS = 3
DEVICES = 12


@pytest.fixture
def lock_fd() -> Iterator[int]:
    descriptor = os.memfd_create("locks")
    yield descriptor
    os.close(descriptor)


class Node:
    """Workers that commit and deliver when they are told to; homes enough for few of the devices."""

    def __init__(self, lock_fd: int) -> None:
        self.words = memoryview(bytearray(4 * WAYS * 2)).cast("I")
        self.progress = Progress(memoryview(bytearray(Progress.size(WORKERS))).cast("q"))
        self.lock_fd = lock_fd
        self.workers = [Worker(self, index) for index in range(WORKERS)]
        self.delivered: list[tuple[int, int]] = []


class Worker:
    def __init__(self, node: Node, index: int) -> None:
        self.node, self.index = node, index
        self.stored: list[tuple[int, list[After], list[tuple[int, int]]]] = []
        self.starts = 0
        self.last = 0
        self.start()

    def start(self) -> None:
        """Start, or start again after kill -9: what was not committed is gone, and was not acknowledged."""
        self.starts += 1
        self.last = max(self.last, self.starts << 32)
        node = self.node
        homes = Homes(node.words, lock_fd=node.lock_fd, lock_start=0, worker=self.index, epoch=self.starts)
        self.order = Order(homes, node.progress, worker=self.index, spool=100 + self.index)
        self.order.start(self.last, self.stored[0][0] - 1 if self.stored else self.last)
        self.routes: dict[int, tuple[int, int]] = {}
        self.open: list[tuple[int, int]] = []
        self.after: list[After] = []

    def publish(self, device: int, seq: int) -> None:
        index, word = self.routes.get(device, (0, -1))
        if self.node.words[index] != word:
            index, word, afters = self.order.come_home("acme", str(device))
            self.routes[device] = index, word
            self.after += afters
        self.open.append((device, seq))

    def commit(self) -> list[tuple[int, int]]:
        """Make what is open durable, and return what may be acknowledged."""
        if self.open:
            self.last += 1
            self.stored.append((self.last, self.after, self.open))
            self.order.committed(self.last)
        durable, self.open, self.after = self.open, [], []
        return durable

    def deliver(self) -> bool:
        """Deliver the first group, if it is its turn."""
        if not self.stored or self.order.waits_for(self.stored[0][1]):
            return False
        self.node.delivered += self.stored.pop(0)[2]
        self.order.settled(self.stored[0][0] - 1 if self.stored else self.last)
        return True


STEPS = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, WORKERS - 1), st.integers(0, DEVICES - 1)),
    st.tuples(st.sampled_from(["commit", "deliver", "kill"]), st.integers(0, WORKERS - 1), st.just(0)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(STEPS, max_size=120))
def test_a_device_that_waits_for_its_answers_is_in_order_wherever_it_goes(
    lock_fd: int, steps: list[tuple[str, int, int]]
) -> None:
    node = Node(lock_fd)
    sent: dict[int, int] = {}
    waits: dict[int, int] = {}  # device: the worker that owes it an answer
    for what, index, device in steps:
        worker = node.workers[index]
        if what == "publish":
            if device not in waits:
                sent[device] = sent.get(device, 0) + 1
            elif waits[device] == index:
                continue
            # Else the connection was cut: the same message again, to another worker.
            waits[device] = index
            worker.publish(device, sent[device])
        elif what == "commit":
            for durable, _ in worker.commit():
                if waits.get(durable) == index:
                    del waits[durable]
        elif what == "deliver":
            worker.deliver()
        else:
            worker.start()
    for worker in node.workers:
        worker.commit()
    while any(worker.deliver() for worker in node.workers):
        pass
    assert not any(worker.stored for worker in node.workers), "they wait for each other"
    first: dict[tuple[int, int], int] = {}
    for position, message in enumerate(node.delivered):
        first.setdefault(message, position)
    for device, last in sent.items():
        seen = [first[device, seq] for seq in range(1, last + 1) if (device, seq) in first]
        assert seen == sorted(seen), (device, node.delivered)


def test_a_spool_that_is_no_longer_there_is_not_waited_for(lock_fd: int) -> None:
    node = Node(lock_fd)
    assert node.workers[0].order.waits_for([After(1, 999, 10)]) == []
    assert node.workers[0].order.waits_for([After(200, 101, 10)]) == []
    later = After(1, 101, 2 << 32)
    assert node.workers[0].order.waits_for([later]) == [later]


def test_a_device_that_is_new_waits_for_what_earlier_runs_left_only(lock_fd: int) -> None:
    node = Node(lock_fd)
    node.words = memoryview(bytearray(Homes.size(1000, WORKERS))).cast("I")
    node.progress.introduce(1, 101, 7, 5)
    for worker in node.workers:
        worker.start()
    node.progress.settled(1, 5)
    first, second, third = node.workers
    second.publish(1, 1)
    second.commit()
    assert first.order.come_home("acme", "2")[2] == [After(1, 101, 7)]
    node.progress.settled(1, 7)
    assert first.order.come_home("acme", "3")[2] == []
    assert third.order.come_home("acme", "1")[2] == [After(1, 101, second.last)]


def test_a_lone_worker_is_everybodys_home(lock_fd: int) -> None:
    words = memoryview(bytearray(Homes.size(10_000, 1))).cast("I")
    progress = Progress(memoryview(bytearray(Progress.size(1))).cast("q"))
    order = Order(Homes(words, lock_fd=lock_fd, lock_start=0, worker=0, epoch=1), progress, worker=0, spool=1)
    for device in range(100):
        index, word, afters = order.come_home("acme", str(device))
        assert words[index] == word
        assert afters == []
