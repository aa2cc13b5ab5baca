"""These tests fork: a test forks a supervisor, which forks workers that write what they do into a pipe."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ingest.node_memory import Gauge, MemoryLimits, NodeMemory, WorkerState
from ingest.supervisor import BACK_OFF_FIRST_S, BACK_OFF_MAX_S, CRASHED, Supervisor, back_off_s

PATIENCE_S = 10.0
LIMITS = MemoryLimits(tenants_max=2, devices_max=2, sessions_max=2, idempotency_keys_max=2)


class Log:
    """Lets the test hear of deaths."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def info(self, event: str, **fields: object) -> None:
        """Take what the tests see otherwise."""

    def error(self, event: str, **fields: object) -> None:
        if event == "process_died":
            self._node.say(f"{fields['process']}-died-{fields['code']}")


class Node:
    """A supervisor in a process of its own, with workers that do what the test says."""

    def __init__(self, folder: Path, *, workers: int) -> None:
        self.memory = NodeMemory(workers, LIMITS, folder / "lock")
        self._reader, self._writer = os.pipe()
        self._heard: list[str] = []
        self._rest = ""
        self.pid = 0
        self._code: int | None = None

    def start(
        self,
        worker: Callable[[Node, int], int],
        *,
        admin: Callable[[Node], int] | None = None,
        drain_deadline_s: float = 5.0,
    ) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        code = 99
        try:
            supervisor = Supervisor(
                memory=self.memory,
                worker_main=lambda index: worker(self, index),
                admin_main=lambda: (admin or serve_as_admin)(self),
                drain_deadline_s=drain_deadline_s,
                log=Log(self),
            )
            code = supervisor.run()
        except BaseException:  # noqa: BLE001  # a child of a test must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)

    def say(self, what: str) -> None:
        """Tell the test, from any process of the node."""
        os.write(self._writer, f"{what} {os.getpid()}\n".encode())

    def hear(self, what: str, times: int = 1) -> list[int]:
        """Wait until `what` was said so often; return the ids of the processes that said it."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            pids = [int(line.split()[1]) for line in self._heard if line.split()[0] == what]
            if len(pids) >= times:
                return pids
            left_s = until_s - time.monotonic()
            assert left_s > 0, f"{what} was not said {times} times: {self._heard}"
            if select.select([self._reader], [], [], left_s)[0]:
                *lines, self._rest = (self._rest + os.read(self._reader, 65_536).decode()).split("\n")
                self._heard.extend(lines)

    def tell(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the supervisor to end."""
        if self._code is None:
            wait_for(self._has_ended)
        assert self._code is not None
        return self._code

    def _has_ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def close(self) -> None:
        if self.pid and self._code is None:
            os.kill(self.pid, signal.SIGKILL)  # its children die with it
            os.waitpid(self.pid, 0)
        for fd in (self._reader, self._writer, self.memory._lock_fd):
            os.close(fd)
        for pair in self.memory.mailboxes:
            for end in pair:
                end.close()


def wait_for(done: Callable[[], bool]) -> None:
    """Other processes have no event to wait for: look often, and not for ever."""
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has reaped yet does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def sleep_for_ever() -> int:
    while True:
        signal.pause()


def ready(node: Node, index: int) -> None:
    node.memory.gauges(index)[Gauge.STATE] = WorkerState.READY
    node.memory.gauges(index)[Gauge.CONNECTIONS] = 9.0
    node.say(f"ready-{index}")


def serve(node: Node, index: int) -> int:
    """Serve until SIGTERM, then drain at once; say so when told to reload."""
    signal.signal(signal.SIGHUP, lambda *_: node.say(f"reload-{index}"))

    def drain(*_: object) -> None:
        node.say(f"drained-{index}")
        os._exit(0)

    signal.signal(signal.SIGTERM, drain)
    ready(node, index)
    return sleep_for_ever()


def serve_as_admin(node: Node) -> int:
    node.say("admin")
    return sleep_for_ever()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, workers=2)
    yield node
    node.close()


def test_a_dead_worker_is_replaced_and_the_others_go_on(node: Node) -> None:
    node.start(serve)
    (first,) = node.hear("ready-0")
    (other,) = node.hear("ready-1")
    os.kill(first, signal.SIGKILL)
    second = node.hear("ready-0", 2)[1]
    assert second != first
    assert is_alive(second)
    assert is_alive(other)
    assert node.memory.gauges(0)[Gauge.EPOCH] == 2.0
    assert node.memory.gauges(1)[Gauge.EPOCH] == 1.0
    node.tell(signal.SIGTERM)
    assert node.exit_code() == 0


def test_a_worker_that_ends_without_being_told_is_replaced_too(node: Node) -> None:
    node.start(serve)
    (first,) = node.hear("ready-0")
    os.kill(first, signal.SIGTERM)
    node.hear("ready-0", 2)


def test_a_dead_admin_process_is_replaced(node: Node) -> None:
    node.start(serve)
    (admin,) = node.hear("admin")
    os.kill(admin, signal.SIGKILL)
    assert node.hear("admin", 2)[1] != admin


def test_a_worker_that_dies_again_and_again_is_started_ever_more_slowly(node: Node) -> None:
    def die(node: Node, index: int) -> int:
        ready(node, index)
        if index == 0:
            node.say(f"{time.monotonic()}")
            return 1
        return serve(node, index)

    node.start(die)
    node.hear("ready-0", 5)
    starts = [float(line.split()[0]) for line in node._heard if line[0].isdigit()]
    gaps = [after - before for before, after in pairwise(starts)]
    for gap, deaths in zip(gaps[1:], range(2, 6), strict=False):
        assert gap >= back_off_s(deaths)
    assert is_alive(node.hear("ready-1")[0])


def test_the_first_death_costs_nothing_and_no_number_of_deaths_costs_more_than_the_maximum() -> None:
    assert back_off_s(1) == 0.0
    assert [back_off_s(deaths) for deaths in (2, 3, 4)] == [
        BACK_OFF_FIRST_S,
        2 * BACK_OFF_FIRST_S,
        4 * BACK_OFF_FIRST_S,
    ]
    assert {back_off_s(deaths) for deaths in (8, 1000, 1100, 10**9)} == {BACK_OFF_MAX_S}


def test_what_a_dead_worker_said_of_itself_is_taken_back(node: Node) -> None:
    def once(node: Node, index: int) -> int:
        if node.memory.gauges(index)[Gauge.EPOCH] > 1:
            node.say(f"connections-{int(node.memory.gauges(index)[Gauge.CONNECTIONS])}")
        return serve(node, index)

    node.start(once)
    (first,) = node.hear("ready-0")
    assert node.memory.gauges(0)[Gauge.CONNECTIONS] == 9.0
    os.kill(first, signal.SIGKILL)
    node.hear("connections-0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_every_worker_drains_and_the_admin_process_ends_last(
    node: Node, number: signal.Signals
) -> None:
    def admin(node: Node) -> int:
        def over(*_: object) -> None:
            node.say("admin-over")
            os._exit(0)

        signal.signal(signal.SIGTERM, over)
        node.say("admin")
        return sleep_for_ever()

    node.start(serve, admin=admin)
    for name in ("ready-0", "ready-1", "admin"):
        node.hear(name)
    node.tell(number)
    assert node.exit_code() == 0
    node.hear("admin-over")
    assert {line.split()[0] for line in node._heard[-3:-1]} == {"drained-0", "drained-1"}
    assert node._heard[-1].startswith("admin-over")


def test_a_worker_that_does_not_drain_is_killed_and_the_exit_code_says_so(node: Node) -> None:
    def refuse(node: Node, index: int) -> int:
        if index == 0:
            return serve(node, index)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready(node, index)
        return sleep_for_ever()

    node.start(refuse, drain_deadline_s=0.1)
    node.hear("ready-0")
    (stubborn,) = node.hear("ready-1")
    node.tell(signal.SIGTERM)
    assert node.exit_code() == 1
    node.hear("drained-0")
    assert not is_alive(stubborn)


def test_an_admin_process_that_does_not_end_does_not_hold_up_a_drain(node: Node) -> None:
    def stay(node: Node) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        node.say("admin")
        return sleep_for_ever()

    node.start(serve, admin=stay)
    (admin,) = node.hear("admin")
    node.hear("ready-0")
    node.hear("ready-1")
    node.tell(signal.SIGTERM)
    assert node.exit_code() == 0
    assert not is_alive(admin)


def test_a_worker_that_fails_while_draining_shows_in_the_exit_code(node: Node) -> None:
    def fail(node: Node, index: int) -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        ready(node, index)
        return sleep_for_ever()

    node.start(fail)
    node.hear("ready-0")
    node.hear("ready-1")
    node.tell(signal.SIGTERM)
    assert node.exit_code() == 1


def test_a_node_told_to_stop_while_it_starts_stops_cleanly(node: Node) -> None:
    def start_slowly(node: Node, index: int) -> int:
        node.say(f"starting-{index}")
        return sleep_for_ever()

    node.start(start_slowly)
    node.hear("starting-0")
    node.hear("starting-1")
    node.tell(signal.SIGTERM)
    assert node.exit_code() == 0


def test_reload_reaches_every_worker(node: Node) -> None:
    node.start(serve)
    node.hear("ready-0")
    node.hear("ready-1")
    node.tell(signal.SIGHUP)
    node.hear("reload-0")
    node.hear("reload-1")


def test_reload_does_not_kill_a_worker_that_is_still_starting(node: Node) -> None:
    def wait_to_be_let_go(node: Node, index: int) -> int:
        node.say(f"starting-{index}")
        node.memory.mailboxes[index][0].setblocking(True)  # the socket's own way
        node.memory.mailboxes[index][0].recv(1)
        return serve(node, index)

    node.start(wait_to_be_let_go)
    starting = node.hear("starting-0") + node.hear("starting-1")
    node.tell(signal.SIGHUP)
    # The admin process is restarted after the supervisor has passed the signal on: a sign that it has.
    os.kill(node.hear("admin")[0], signal.SIGKILL)
    node.hear("admin", 2)
    for index in range(2):
        node.memory.post(index, b"x")
    assert node.hear("ready-0") + node.hear("ready-1") == starting


@pytest.mark.parametrize("crash", [False, True])
def test_a_node_whose_worker_cannot_start_gives_up_and_leaves_nobody(node: Node, *, crash: bool) -> None:
    def fail(node: Node, index: int) -> int:
        if index == 0:
            return serve(node, index)
        wait_for(lambda: node.memory.gauges(0)[Gauge.STATE] == WorkerState.READY)
        if crash:
            raise RuntimeError("this is what the test wants")
        return 1

    node.start(fail)
    assert node.exit_code() == 1
    node.hear(f"worker-1-died-{CRASHED if crash else 1}")
    assert not any(is_alive(pid) for pid in node.hear("ready-0") + node.hear("admin"))


def test_a_worker_that_raises_once_it_was_up_is_replaced(node: Node) -> None:
    def crash_once(node: Node, index: int) -> int:
        if index == 0 and node.memory.gauges(index)[Gauge.EPOCH] == 1:
            ready(node, index)
            raise RuntimeError("this is what the test wants")
        return serve(node, index)

    node.start(crash_once)
    node.hear("ready-0", 2)
    node.hear(f"worker-0-died-{CRASHED}")


@pytest.mark.crash
def test_a_killed_supervisor_leaves_no_orphan(node: Node) -> None:
    def deaf(node: Node, index: int) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready(node, index)
        return sleep_for_ever()

    node.start(deaf)
    pids = node.hear("ready-0") + node.hear("ready-1") + node.hear("admin")
    assert all(is_alive(pid) for pid in pids)
    node.tell(signal.SIGKILL)
    assert node.exit_code() == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
