"""A control plane as a process, and an Envoy that asks it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from typer.testing import CliRunner

from commands.mesh import app
from routing.mesh.compile.proxy import Proxy
from routing.xds.status import Row, Unreachable, fetched
from tests.support.mesh_rig import Envoy, port, running

HEADWORKS = Path(sys.executable).with_name("headworks")
DEADLINE_S = 30.0


class ControlPlane:
    """`headworks mesh xds` over a folder; it can be killed, and comes again on its port."""

    def __init__(self, folder: Path, served: Path, *more: str) -> None:
        self.port = port()
        self.socket = folder / "status.sock"
        self.log = folder / "control-plane.log"
        self._command = [str(HEADWORKS), "mesh", "xds", str(served), "--bind", f"127.0.0.1:{self.port}"]
        self._command += ["--status-socket", str(self.socket), *more]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: ASYNC220  # returns at once
        await self.until(lambda _: True)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()

    async def until(self, holds: Callable[[list[Row]], bool]) -> list[Row]:
        """Wait until the status is as it should be."""
        until_s = time.monotonic() + DEADLINE_S
        rows: list[Row] = []
        while time.monotonic() < until_s:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(Unreachable):
                if self.socket.exists() and holds(rows := await fetched(self.socket)):
                    return rows
            await asyncio.sleep(0.05)
        raise AssertionError(f"{rows}\n{self.log.read_text()}")


def acknowledged(rows: list[Row]) -> bool:
    return bool(rows) and all(row.state == "ACKED" for row in rows)


async def until(socket: Path, holds: Callable[[list[Row]], bool]) -> list[Row]:
    """Wait until the status that a control plane says on its socket is as it should be."""
    until_s = time.monotonic() + DEADLINE_S
    rows: list[Row] = []
    while time.monotonic() < until_s:
        with contextlib.suppress(Unreachable):
            if holds(rows := await fetched(socket)):
                return rows
        await asyncio.sleep(0.05)
    raise AssertionError(f"{rows}")


@contextlib.asynccontextmanager
async def control_plane(folder: Path, served: Path, *more: str) -> AsyncIterator[ControlPlane]:
    """Run a control plane."""
    made = ControlPlane(folder, served, *more)
    try:
        await made.start()
        yield made
    finally:
        made.stop()


def bootstrapped(folder: Path, node: str, server: str, *more: str) -> Envoy:
    """Write the bootstrap of a node, as the command prints it."""
    proxy = Proxy(listen="127.0.0.1", ingress_port=port(), egress_port=port(), admin_port=port())
    words = ["bootstrap", node, "--server", server, "--listen", proxy.listen]
    words += ["--ingress-port", str(proxy.ingress_port), "--egress-port", str(proxy.egress_port)]
    got = CliRunner().invoke(app, [*words, "--admin-port", str(proxy.admin_port), *more])
    assert got.exit_code == 0, got.output
    config = folder / f"{node.rpartition('/')[2]}.json"
    config.write_text(got.stdout)
    return Envoy(proxy, config)


@contextlib.asynccontextmanager
async def proxied(folder: Path, plane: ControlPlane, node: str, *more: str) -> AsyncIterator[Envoy]:
    """Run an Envoy that asks a control plane, and has got what it asked for."""
    envoy = bootstrapped(folder, node, f"127.0.0.1:{plane.port}", *more)
    with running(envoy) as process:
        await envoy.ready(process)
        yield envoy
