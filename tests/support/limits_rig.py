"""The service that counts for shared limits, as a process."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Self

from tests.support import mesh_documents as of
from tests.support.mesh_rig import port
from tests.support.xds_rig import HEADWORKS


class Limits:
    """`headworks mesh limits` as a process."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.port = port()
        self._log = folder / f"limits-{self.port}.log"
        self._command = [str(HEADWORKS), "mesh", "limits", "--bind", f"127.0.0.1:{self.port}", *more]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: ASYNC220  # returns at once
        async with asyncio.timeout(30):
            while "mesh_limits_started" not in self._log.read_text():
                assert self._process.poll() is None, self._log.read_text()
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.stop() == 0, self._log.read_text()

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()

    def times(self, event: str) -> int:
        """Return how often an event is in the log."""
        return self._log.read_text().count(event)

    def policy(self, **more: object) -> of.Document:
        # A machine that is busy with other things answers late.
        patient = {"host": "127.0.0.1", "port": self.port, "timeout": {"unit": "s", "value": 10}}
        return of.policy("limits", rateLimitService={**patient, **more})
