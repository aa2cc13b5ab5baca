"""The open group: what waits for the next fsync, and who waits with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ingest.records import ENCODE_GROUP, After, Group, Run
from ingest.spool.store import SpoolError, Statement, StoredGroup


class Waiter(Protocol):
    """Somebody to whom an answer is owed once a group is durable."""

    def durable(self, reply: bytes) -> None:
        """Send `reply`: what it says is on the disk now."""

    def lost(self, error: SpoolError) -> bool:
        """Hear that the disk refused. Return True to withdraw what was appended, False to wait on."""


class OpenGroup:
    """Collects the runs of every connection since the last commit. Bounded by its owner."""

    __slots__ = (
        "_withdrawable",
        "after",
        "bytes",
        "number",
        "opened_s",
        "records",
        "replies",
        "runs",
        "statements",
        "tenants",
        "traces",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.runs: list[Run | None] = []
        self.records = 0
        self.bytes = 0
        self.tenants: dict[str, int] = {}
        self.replies: dict[Waiter, bytes] = {}
        self.statements: list[Statement] = []
        self.after: dict[int, After] = {}
        self.traces: dict[int, str] = {}
        self.opened_s = 0.0
        self._withdrawable: dict[Waiter, list[tuple[int, Sequence[Statement]]]] = {}

    def __bool__(self) -> bool:
        return bool(self.runs or self.replies or self.statements)

    def append(self, run: Run, payload_bytes: int) -> int:
        """Add `run` and return the index of its first record in the group.

        Hot: guarded by bench/test_spool.py::test_append.
        """
        first = self.records
        count = run.count
        self.runs.append(run)
        self.records = first + count
        self.bytes += payload_bytes
        tenants = self.tenants
        tenant = run.tenant
        tenants[tenant] = tenants.get(tenant, 0) + count
        return first

    def come_after(self, afters: Sequence[After]) -> None:
        """Be delivered only when each of `afters` is; of one worker the last counts."""
        for after in afters:
            self.after[after.worker] = after

    def trace(self, traceparent: str) -> None:
        """Keep the trace context of the last run, which goes with its records."""
        self.traces[len(self.runs) - 1] = traceparent
        self.bytes += len(traceparent)

    def answer(self, waiter: Waiter, reply: bytes) -> None:
        """Owe `reply` to `waiter`, behind what it is already owed."""
        replies = self.replies
        owed = replies.get(waiter)
        replies[waiter] = reply if owed is None else owed + reply

    def enclose(self, statement: Statement, payload_bytes: int) -> None:
        """Add a dead letter, which takes up memory and the disk as a run does."""
        self.statements.append(statement)
        self.bytes += payload_bytes

    def tie(self, waiter: Waiter, statements: Sequence[Statement]) -> None:
        """Tie the last run to `waiter`, which may withdraw it with `statements` if the disk refuses."""
        self.statements.extend(statements)
        self._withdrawable.setdefault(waiter, []).append((len(self.runs) - 1, statements))

    def refused(self, error: SpoolError) -> None:
        """Tell every waiter that the disk refused, and take out what they withdraw."""
        for waiter in [waiter for waiter in self.replies if waiter.lost(error)]:
            del self.replies[waiter]
            for position, statements in self._withdrawable.pop(waiter, ()):
                run = self.runs[position]
                assert run is not None
                self.runs[position] = None
                self.records -= run.count
                self.tenants[run.tenant] -= run.count
                for statement in statements:
                    self.statements.remove(statement)

    def seal(self, node: str, boot: str) -> tuple[Group, StoredGroup] | None:
        """Return the group to write, or None when it has no records."""
        runs = [run for run in self.runs if run is not None]
        if not runs:
            return None
        group = Group(node, boot, self.number, runs, list(self.after.values()), self._traces())
        tenants = {tenant: count for tenant, count in self.tenants.items() if count}
        return group, StoredGroup(self.number, self.records, tenants, ENCODE_GROUP.encode(group))

    def _traces(self) -> dict[int, str]:
        """Return the trace contexts by position among the runs that were not withdrawn."""
        if len(self.traces) == 0:
            return {}
        kept = [position for position, run in enumerate(self.runs) if run is not None]
        return {new: self.traces[old] for new, old in enumerate(kept) if old in self.traces}
