"""A campaign as Locust's load shape; it ends when all is answered and every worker has handed over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from locust import LoadTestShape
from locust.env import Environment
from locust.stats import StatsEntry

from loadtests.ledger import Row
from loadtests.plan import Plan
from loadtests.users.fleet import Fleet, as_message
from loadtests.users.result import Figures, Measured, Result

SPAWN_PER_S = 100.0
ROWS_AT_ONCE = 5000
HAND_OVER_DEADLINE_S = 60.0


class CampaignShape(LoadTestShape):
    """So many users at a moment as the plan's stages say."""

    abstract = True
    plan: Plan
    users: int
    conclude: Callable[[bool], bool]
    """Asked once the load is over, with whether there is no more time; says whether it is the end."""

    def tick(self) -> tuple[int, float] | None:
        """Return how many users there are to be."""
        at_s = time.perf_counter() - self.start_time
        over_s = self.plan.load_s
        if at_s >= over_s and type(self).conclude(at_s >= over_s + self.plan.settle_s):
            return None
        share = self.plan.stage_at(min(at_s, over_s)).share
        return max(1, round(self.users * share)), SPAWN_PER_S


class Conductor:
    """Collects what workers say: their figures all the time, and their rows at the end."""

    def __init__(self, environment: Environment, fleet: Fleet, folder: Path | None) -> None:
        self._environment = environment
        self._fleet = fleet
        self._folder = folder
        self._figures: dict[str, Figures] = {}
        self._rows: dict[str, list[Row]] = {}
        self._missing: set[str] | None = None
        """Workers that owe rows, or the report after them: Locust counts with it what the rows say."""
        self._handed_over: set[str] = set()
        self._asked_s = 0.0
        self._settled = False

    def begin(self) -> None:
        """Note that a run begins."""
        self._figures, self._rows, self._missing, self._handed_over = {}, {}, None, set()
        if self._folder is not None:
            (self._folder / "began").write_text(repr(time.monotonic()))

    def hear(self, client: str, said: dict[str, Any]) -> None:
        """Note a worker's figures, the last of which are those after its rows."""
        self._figures[client] = Figures(**said)
        if self._missing is not None and client in self._handed_over:
            self._missing.discard(client)

    @property
    def figures(self) -> Figures:
        """What is so now, with all workers."""
        if not self._figures:
            return self._fleet.figures
        total = Figures()
        for figures in self._figures.values():
            total = total.plus(figures)
        return total

    def conclude(self, late: bool) -> bool:  # noqa: FBT001  # a callback
        """Go on with the end; return whether it has come."""
        runner = self._environment.runner
        assert runner is not None
        if self._missing is None:
            figures = self.figures
            self._settled = figures.devices > 0 and not figures.open and not figures.measuring
            if not self._settled and not late:
                return False
            workers = getattr(runner, "clients", None)
            self._missing = set(workers) if workers is not None else {"local"}
            self._asked_s = time.monotonic()
            if workers is None:
                for rows, last in handed_over(self._fleet):
                    self.take("local", rows, last=last)
                self._missing.clear()
            else:
                runner.send_message("hand_over", None)
        elif time.monotonic() > self._asked_s + HAND_OVER_DEADLINE_S:
            self._write()
            return True
        if not self._missing:
            self._write()
            return True
        return False

    def take(self, client: str, rows: dict[str, list[Any]], *, last: bool) -> None:
        """Take rows that a worker hands over."""
        for group, some in rows.items():
            self._rows.setdefault(group, []).extend(msgspec.convert(some, list[Row]))
        if last:
            self._handed_over.add(client)

    def _write(self) -> None:
        if self._folder is None:
            return
        stats = self._environment.stats
        runner = self._environment.runner
        assert runner is not None
        result = Result(
            rows=self._rows,
            figures=self.figures,
            measured=[_measured(entry) for entry in stats.entries.values()],
            errors={
                f"{error.method} {error.name}: {error.error}": error.occurrences
                for error in stats.errors.values()
            },
            exceptions=[str(entry["msg"]) for entry in runner.exceptions.values()],
            settled=self._settled,
            handed_over=not self._missing,
        )
        made = self._folder / "result.new"
        made.write_bytes(msgspec.msgpack.encode(result))
        made.rename(self._folder / "result.msgpack")


def _measured(entry: StatsEntry) -> Measured:
    return Measured(
        method=entry.method,
        name=entry.name,
        count=entry.num_requests,
        failures=entry.num_failures,
        p50_ms=float(entry.get_response_time_percentile(0.5)),
        p99_ms=float(entry.get_response_time_percentile(0.99)),
        max_ms=float(entry.max_response_time),
        histogram=dict(entry.response_times),
    )


def handed_over(fleet: Fleet) -> list[tuple[dict[str, list[Any]], bool]]:
    """Return all rows of a process in messages that a master can take, and whether it is the last.

    From then on Locust knows all that these rows are made of.
    """
    fleet.flush()
    messages: list[dict[str, list[Any]]] = [{}]
    size = 0
    for group, row in fleet.rows():
        if size == ROWS_AT_ONCE:
            messages.append({})
            size = 0
        messages[-1].setdefault(group, []).append(msgspec.to_builtins(row))
        size += 1
    return [(message, message is messages[-1]) for message in messages]


def report(fleet: Fleet) -> dict[str, Any]:
    """Return what a worker reports now and then."""
    return as_message(fleet.figures)
