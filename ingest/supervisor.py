"""The parent process: forks the workers and the admin process, restarts them, and drains them.

- Plain and synchronous: it has no event loop, opens no socket to the network and cannot be slow.
- Each worker opens its own `SO_REUSEPORT` sockets. If the supervisor kept them open, connections would
  go on to the socket of a dead worker and wait there; so they go to its siblings instead, and only what
  was in the backlog when it died is reset.
- Workers die with it (PR_SET_PDEATHSIG), so a killed supervisor leaves nobody behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

from ingest.node_memory import Gauge, NodeMemory, WorkerState
from runtime import clock

PR_SET_PDEATHSIG: Final = 1
TICK_S: Final = 0.1
STABLE_S: Final = 10.0
"""A process that lived as long starts anew with a clean record."""
BACK_OFF_FIRST_S: Final = 0.1
BACK_OFF_MAX_S: Final = 5.0
GRACE_S: Final = 2.0
"""What a worker has beyond its own drain deadline, and the admin process in all."""
CRASHED: Final = 70
"""The exit code of a child that raised: EX_SOFTWARE of sysexits.h."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class _Child:
    __slots__ = ("code", "deaths", "main", "name", "pid", "restart_s", "started_s", "worker")

    def __init__(self, name: str, main: Callable[[], int], worker: int | None) -> None:
        self.name = name
        self.main = main
        self.worker = worker
        self.pid = 0
        self.code = 0
        self.started_s = 0.0
        self.restart_s = 0.0
        self.deaths = 0


class Supervisor:
    """Keeps one process a worker and one for the admin endpoints alive until told to stop."""

    def __init__(
        self,
        *,
        memory: NodeMemory,
        worker_main: Callable[[int], int],
        admin_main: Callable[[], int],
        drain_deadline_s: float,
        log: Any,
    ) -> None:
        self._memory = memory
        self._drain_deadline_s = drain_deadline_s
        self._log = log
        self._workers = [
            _Child(f"worker-{index}", lambda index=index: worker_main(index), index)  # type: ignore[misc]
            for index in range(memory.workers)
        ]
        self._admin = _Child("admin", admin_main, None)
        self._draining = False

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT; 0 after a clean drain, else 1."""
        # Waited for below. An inherited SIG_IGN would keep SIGCHLD, and the exit codes, from us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for child in self._everybody():
            self._start(child)
        while True:
            received = signal.sigtimedwait(SIGNALS, TICK_S)
            if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                return self._drain()
            if received is not None and received.si_signo == signal.SIGHUP:
                self._tell(self._workers, signal.SIGHUP)
            now_s = clock.monotonic_s()
            for child in self._reap(self._everybody(), now_s):
                if self._never_started(child):
                    self._kill(self._everybody())
                    return 1
                if child.worker is not None:
                    self._memory.worker_gone(child.worker)
            for child in self._everybody():
                if not child.pid and now_s >= child.restart_s:
                    self._start(child)

    def _everybody(self) -> list[_Child]:
        return [*self._workers, self._admin]

    def _start(self, child: _Child) -> None:
        parent = os.getpid()
        child.started_s = clock.monotonic_s()
        if child.worker is not None:
            gauges = self._memory.gauges(child.worker)
            gauges[Gauge.EPOCH] += 1
            gauges[Gauge.STATE] = WorkerState.STARTING
        _flush()
        try:
            child.pid = os.fork()
        except OSError as error:
            child.deaths += 1
            child.restart_s = child.started_s + back_off_s(child.deaths)
            self._log.error("cannot_fork", process=child.name, error=str(error))
            return
        if child.pid:
            return
        code = CRASHED
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            _take_signals_as_a_child()
            code = child.main()
        except BaseException:  # noqa: BLE001  # a forked child must never return into its parent's code
            with contextlib.suppress(OSError):
                traceback.print_exc()
        finally:
            _flush()
            os._exit(code)

    def _tell(self, children: Iterable[_Child], number: signal.Signals) -> None:
        for child in children:
            if child.pid:
                os.kill(child.pid, number)

    def _reap(self, children: Iterable[_Child], now_s: float) -> list[_Child]:
        """Collect the dead; return them, with when each may start again."""
        dead = []
        for child in children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = 0
            child.code = os.waitstatus_to_exitcode(status)
            if now_s - child.started_s > STABLE_S:
                child.deaths = 0
            child.deaths += 1
            wait_s = back_off_s(child.deaths)
            child.restart_s = now_s + wait_s
            dead.append(child)
            if not self._draining:
                self._log.error("process_died", process=child.name, code=child.code, restart_in_s=wait_s)
        return dead

    def _never_started(self, child: _Child) -> bool:
        """Tell whether a worker failed on its first start, which restarting will not cure."""
        if child.worker is None:
            return False
        gauges = self._memory.gauges(child.worker)
        return gauges[Gauge.EPOCH] == 1 and gauges[Gauge.STATE] == WorkerState.STARTING

    def _drain(self) -> int:
        """Ask everybody to finish, and kill who does not by the deadline."""
        self._draining = True
        self._log.info("draining", deadline_s=self._drain_deadline_s)
        self._tell(self._workers, signal.SIGTERM)
        late = self._wait(self._workers, self._drain_deadline_s + GRACE_S)
        # The admin process stays until the end: it is how one sees what a drain waits for.
        self._tell([self._admin], signal.SIGTERM)
        self._wait([self._admin], GRACE_S)
        failed = {child.name: child.code for child in self._workers if child.code and child not in late}
        if late:
            self._log.error("drain_deadline", killed=[child.name for child in late])
        if failed:
            self._log.error("drained_with_errors", codes=failed)
        return 1 if late or failed else 0

    def _wait(self, children: list[_Child], patience_s: float) -> list[_Child]:
        """Wait until all have ended; kill, and return, those who have not in time."""
        until_s = clock.monotonic_s() + patience_s
        while any(child.pid for child in children):
            self._reap(children, clock.monotonic_s())
            if clock.monotonic_s() > until_s:
                late = [child for child in children if child.pid]
                self._kill(late)
                return late
            if any(child.pid for child in children):
                signal.sigtimedwait(SIGNALS, TICK_S)
        return []

    def _kill(self, children: Iterable[_Child]) -> None:
        """Kill who is left, and wait for it: nobody outlives the supervisor."""
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.pid = 0
                child.code = -signal.SIGKILL


def back_off_s(deaths: int) -> float:
    """Return how long to wait before a start after so many deaths in a row: none after the first."""
    if deaths <= 1:
        return 0.0
    doublings = min(deaths - 2, 16)  # far beyond the maximum, and far below what a float can hold
    return min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2.0**doublings)


def _flush() -> None:
    """Write out what is buffered, so that a fork does not copy it; nobody may be reading any more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _take_signals_as_a_child() -> None:
    """Set up signals until the child takes them over itself.

    A child that does not serve yet has nothing to reload and nothing to drain.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Ctrl-C on a terminal reaches the whole group; only the supervisor acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
