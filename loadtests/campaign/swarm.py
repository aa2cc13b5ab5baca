"""Locust as processes: one alone, or a master with workers. gevent stays in them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadtests.node import free_port
from loadtests.plan import Plan
from loadtests.target import Target
from loadtests.users.result import Result

LOCUSTFILE: Final = Path(__file__).parents[1] / "locustfile.py"
ROOT: Final = Path(__file__).parents[2]
BEGIN_DEADLINE_S: Final = 30.0
REMOTE_DEADLINE_S: Final = 600.0
STOP_TIMEOUT_S: Final = 10
END_DEADLINE_S: Final = 90.0
LOOK_S: Final = 0.1
MASTER_PORT: Final = 5557


class SwarmError(Exception):
    """Locust did not do what a campaign needs; the text has its last words."""


class Swarm:
    """The processes of one campaign, which leave `result.msgpack` and `locust.html` in `folder`.

    `processes` above 1 are workers of a master on this machine; for `remote` ones it waits at `MASTER_PORT`.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        folder: Path,
        *,
        processes: int,
        remote: int,
        shard_max: int,
        seed: int,
        web: str | None,
    ) -> None:
        self._folder = folder
        self._processes = processes
        self._remote = remote
        self._web = web
        self._port = MASTER_PORT if remote else free_port()
        self._running: list[asyncio.subprocess.Process] = []
        plan_file = folder / "plan.json"
        plan_file.write_bytes(msgspec.json.encode(plan))
        self._log = folder / "locust.log"
        self._environment = os.environ | {
            "LOADTESTS_CAMPAIGN": str(plan_file),
            "LOADTESTS_FOLDER": str(folder),
            "LOADTESTS_SHARD": str(shard_max),
            "LOADTESTS_SEED": str(seed),
            "PYTHONPATH": str(ROOT),
            **{
                f"LOADTESTS_TO_{name.upper()}": value
                for name, value in msgspec.structs.asdict(target).items()
            },
        }

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._running]

    @property
    def _distributed(self) -> int:
        """How many workers a master waits for."""
        return self._remote + (self._processes if self._processes > 1 or self._remote else 0)

    async def start(self) -> float:
        """Start them and return when the load began, by the monotonic clock; raises `SwarmError`."""
        words = ["--html", str(self._folder / "locust.html"), "--stop-timeout", str(STOP_TIMEOUT_S)]
        words += ["--only-summary", "--exit-code-on-error", "0"]
        if self._web is None:
            words.append("--headless")
        else:
            host, _, port = self._web.rpartition(":")
            words += ["--autostart", "--autoquit", "3", "--web-host", host, "--web-port", port]
        if self._distributed:
            words += ["--master", "--master-bind-port", str(self._port)]
            words += ["--expect-workers", str(self._distributed)]
        await self._spawn(words)
        if self._distributed:
            for _ in range(self._processes):
                await self._spawn(["--worker", "--master-port", str(self._port)])
        return await self._began()

    async def _spawn(self, words: Sequence[str]) -> None:
        with self._log.open("ab") as log:
            self._running.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *words),
                    stdout=log,
                    stderr=log,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C is for the runner
                )
            )

    async def _began(self) -> float:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + (REMOTE_DEADLINE_S if self._remote else BEGIN_DEADLINE_S)
        began = self._folder / "began"
        while loop.time() < until_s and self._running[0].returncode is None:
            if began.exists() and (text := began.read_text()):
                return float(text)
            await asyncio.sleep(LOOK_S)
        raise SwarmError(f"Locust did not begin: {self._last_words()}")

    async def result(self, within_s: float) -> Result:
        """Wait until they have ended, and return what they say; raises `SwarmError`."""
        try:
            async with asyncio.timeout(within_s + END_DEADLINE_S):
                for process in self._running:
                    await process.wait()
        except TimeoutError as error:
            raise SwarmError(f"Locust did not end: {self._last_words()}") from error
        path = self._folder / "result.msgpack"
        if not path.exists():
            raise SwarmError(f"Locust left no result: {self._last_words()}")
        return msgspec.msgpack.decode(path.read_bytes(), type=Result)

    @property
    def running(self) -> bool:
        """Whether the first of them has not ended."""
        return bool(self._running) and self._running[0].returncode is None

    def kill(self) -> None:
        """End what has not."""
        for process in self._running:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it said nothing"
