"""The parent process: forks the workers and the admin process, restarts them, and drains them.

Plain and synchronous: it has no event loop, opens no socket to the network and cannot be slow. Workers
die with it (PR_SET_PDEATHSIG), so a killed supervisor leaves nobody behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from ingest import clock
from ingest.node_memory import Gauge, NodeMemory, WorkerState

PR_SET_PDEATHSIG: Final = 1
TICK_S: Final = 0.1
STABLE_S: Final = 10.0
BACK_OFF_MAX_S: Final = 5.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class _Child:
    __slots__ = ("deaths", "main", "name", "pid", "restart_s", "started_s", "worker")

    def __init__(self, name: str, main: Callable[[], int], worker: int | None) -> None:
        self.name = name
        self.main = main
        self.worker = worker
        self.pid = 0
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
        self._children = [
            _Child(f"worker-{index}", lambda index=index: worker_main(index), index)  # type: ignore[misc]
            for index in range(memory.workers)
        ]
        self._admin = _Child("admin", admin_main, None)

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT; 0 after a clean drain, else 1."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for child in [*self._children, self._admin]:
            self._start(child)
        while True:
            received = signal.sigtimedwait(SIGNALS, TICK_S)
            if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                return self._drain()
            if received is not None and received.si_signo == signal.SIGHUP:
                self._tell(self._children, signal.SIGHUP)
            failed = self._reap(restart=True)
            if failed:
                self._tell([*self._children, self._admin], signal.SIGKILL)
                return 1

    def _start(self, child: _Child) -> None:
        parent = os.getpid()
        child.started_s = clock.monotonic_s()
        if child.worker is not None:
            gauges = self._memory.gauges(child.worker)
            gauges[Gauge.EPOCH] += 1
            gauges[Gauge.STATE] = WorkerState.STARTING
        sys.stderr.flush()
        sys.stdout.flush()
        child.pid = os.fork()
        if child.pid:
            return
        code = 70
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            # Ctrl-C on a terminal reaches the whole group; only the supervisor acts on it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = child.main()
        except BaseException:  # noqa: BLE001  # a forked child must never return into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _tell(self, children: list[_Child], number: signal.Signals) -> None:
        for child in children:
            if child.pid:
                os.kill(child.pid, number)

    def _reap(self, *, restart: bool) -> bool:
        """Collect the dead, and start them again; True when a worker cannot start at all."""
        now_s = clock.monotonic_s()
        for child in [*self._children, self._admin]:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._died(child, os.waitstatus_to_exitcode(status), now_s)
                    if restart and self._never_started(child):
                        return True
            if not child.pid and restart and now_s >= child.restart_s:
                self._start(child)
        return False

    def _never_started(self, child: _Child) -> bool:
        """Tell whether a worker failed on its first start, which restarting will not cure."""
        if child.worker is None:
            return False
        gauges = self._memory.gauges(child.worker)
        return gauges[Gauge.EPOCH] == 1 and gauges[Gauge.STATE] == WorkerState.STARTING and child.deaths == 1

    def _died(self, child: _Child, code: int, now_s: float) -> None:
        child.pid = 0
        if now_s - child.started_s > STABLE_S:
            child.deaths = 0
        child.deaths += 1
        # The first death of a worker that had been up is made good at once.
        wait_s = 0.0 if child.deaths == 1 else min(BACK_OFF_MAX_S, 0.1 * 2 ** (child.deaths - 2))
        child.restart_s = now_s + wait_s
        if code:
            self._log.error("process_died", process=child.name, code=code, restart_in_s=wait_s)

    def _drain(self) -> int:
        """Ask everybody to finish, and kill who does not by the deadline."""
        self._log.info("draining", deadline_s=self._drain_deadline_s)
        deadline_s = clock.monotonic_s() + self._drain_deadline_s + 2.0
        self._tell(self._children, signal.SIGTERM)
        clean = True
        codes: dict[str, int] = {}
        while any(child.pid for child in self._children):
            signal.sigtimedwait(SIGNALS, TICK_S)
            for child in self._children:
                if child.pid:
                    pid, status = os.waitpid(child.pid, os.WNOHANG)
                    if pid:
                        child.pid = 0
                        codes[child.name] = os.waitstatus_to_exitcode(status)
            if clock.monotonic_s() > deadline_s:
                clean = False
                self._log.error("drain_deadline", left=[c.name for c in self._children if c.pid])
                self._tell(self._children, signal.SIGKILL)
        if self._admin.pid:
            os.kill(self._admin.pid, signal.SIGTERM)
            os.waitpid(self._admin.pid, 0)
        failed = {name: code for name, code in codes.items() if code}
        if failed:
            self._log.error("drained_with_errors", codes=failed)
        return 0 if clean and not failed else 1
