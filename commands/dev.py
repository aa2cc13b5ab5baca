"""`headworks dev`: everything on one machine, with a simulated fleet."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
from pathlib import Path
from typing import Annotated, Self

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from commands.common import JsonOption, fail
from commands.demo import screen
from commands.demo.fleet import Device, Tally
from commands.demo.node import TENANT, DevNode, Ports
from commands.demo.platform import Platform, PlatformPorts
from ingest.spool import inspect
from runtime import clock

app = typer.Typer()

PAINT_S = 0.5
PRINT_S = 2.0


@app.command()
def dev(
    devices: Annotated[int, typer.Option(min=1, max=2000, help="How many devices to simulate.")] = 200,
    duration: Annotated[float, typer.Option(min=0, help="Stop after so many seconds; 0 is at Ctrl-C.")] = 0,
    rate: Annotated[float, typer.Option(min=0.01, max=100, help="Messages a second of each device.")] = 5,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Where everything is kept.")] = Path("var"),
    picture: Annotated[Path | None, typer.Option(help="Write the last screen to an SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a node with a development CA and a fleet over mutual TLS; exit 0 if nothing is lost."""
    run = _Run(data_dir, devices, rate, duration, picture, as_json=as_json)
    raise typer.Exit(asyncio.run(run.run()))


class _Run:
    """One run of the development node."""

    def __init__(
        self,
        folder: Path,
        devices: int,
        rate: float,
        duration_s: float,
        picture: Path | None,
        *,
        as_json: bool,
    ) -> None:
        self._folder = folder
        self._devices = devices
        self._rate = rate
        self._duration_s = duration_s
        self._picture = picture
        self._as_json = as_json
        self._console = Console(stderr=as_json)
        self._last: Panel | None = None
        self._tally = Tally()
        self._over = asyncio.Event()

    async def run(self) -> int:
        """Run it all, and return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._over.set)
        node = DevNode(self._folder, Ports())
        platform = Platform(node, PlatformPorts())
        issued = node.prepare(self._devices)
        before = inspect.ledger(self._folder)
        try:
            await node.start()
            platform.prepare()
            await platform.start()
        except RuntimeError as error:
            await platform.stop()
            await node.stop()
            fail(str(error).removeprefix("headworks: "))
        if not self._as_json:
            hints = screen.hints(self._folder, node.ports) + screen.api_hints(self._folder, platform.ports)
            self._console.print(hints, highlight=False, soft_wrap=True)
        async with asyncio.TaskGroup() as tasks:
            for name, files in issued.items():
                device = Device(TENANT, name, files, node.ca.ca_path, self._tally)
                tasks.create_task(device.run(node.ports.mqtts, self._rate, self._over))
            if self._duration_s:
                loop.call_later(self._duration_s, self._over.set)
            await self._watch(node)
        codes = [await platform.stop(), await node.stop()]
        right, shown = screen.conservation(self._tally, before, inspect.ledger(self._folder))
        if self._as_json:
            figures = {"sent": self._tally.sent, "acknowledged": self._tally.acknowledged, "conserved": right}
            typer.echo(msgspec.json.encode(figures).decode())
        else:
            self._console.print(shown)
        if self._picture is not None:
            paper = Console(record=True, width=100, file=io.StringIO())
            paper.print(*([self._last] if self._last is not None else []), shown, sep="\n")
            paper.save_svg(str(self._picture), title="make run")
        return 0 if right and not any(codes) else 1

    async def _watch(self, node: DevNode) -> None:
        """Show what happens until it is over."""
        began_s = last_s = clock.monotonic_s()
        accepted = 0.0
        live = self._console.is_terminal and not self._as_json
        with Live(console=self._console, auto_refresh=False, transient=False) if live else _Nothing() as view:
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PAINT_S if live else PRINT_S):
                        await self._over.wait()
                status = await node.status()
                now_s = clock.monotonic_s()
                count = float((status or {}).get("accepted", accepted))
                rate, elapsed_s = (count - accepted) / (now_s - last_s), now_s - began_s
                accepted, last_s = count, now_s
                self._last = screen.live(status, self._tally, accepted_per_s=rate, elapsed_s=elapsed_s)
                if isinstance(view, Live):
                    view.update(self._last, refresh=True)
                else:
                    text = screen.line(status, self._tally, accepted_per_s=rate, elapsed_s=elapsed_s)
                    self._console.print(text, highlight=False, soft_wrap=True)


class _Nothing:
    """Stands where the live table would be."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None
