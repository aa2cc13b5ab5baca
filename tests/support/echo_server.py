"""An upstream as a process of its own, which says what it was asked, and can be killed.

    python tests/support/echo_server.py NAME PORT LEDGER

Paths: `/healthz`; `/v1/slow/SECONDS` answers late; `/v1/drip/COUNT/SECONDS` sends its body in parts;
all else is echoed.
A request with `X-Ledger` has a line in the file LEDGER before it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

START_DEADLINE_S = 20.0


def app_of(name: str, ledger: Path) -> web.Application:
    file = ledger.open("a", buffering=1)

    async def echo(request: web.Request) -> web.StreamResponse:
        if request.path == "/healthz":
            return web.Response()
        body = await request.read()
        if (entry := request.headers.get("X-Ledger")) is not None:
            file.write(f"{entry}\n")
        parts = request.path.split("/")[2:]
        if parts[0] == "slow":
            await asyncio.sleep(float(parts[1]))
        if parts[0] == "drip":
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(int(parts[1])):
                await response.write(b"drip\n")
                await asyncio.sleep(float(parts[2]))
            return response
        said = {
            "server": name,
            "method": request.method,
            "target": request.path_qs,
            "headers": [[key.lower(), value] for key, value in request.headers.items()],
            "body": body.decode("latin-1"),
        }
        return web.json_response(said)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


class EchoServer:
    """The process."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name = name
        self.port = port
        self.ledger = folder / f"{name}.ledger"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.echo_server", self.name, str(self.port)]
        self.process = subprocess.Popen([*command, str(self.ledger)])
        until = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.address}/healthz", timeout=2).close()
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.name} does not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def entries(self) -> list[str]:
        """Return what the ledger has: the `X-Ledger` of each request that came."""
        return self.ledger.read_text().split() if self.ledger.exists() else []


@contextlib.contextmanager
def echo_servers(folder: Path, *ports: int) -> Iterator[list[EchoServer]]:
    """Run servers named a, b, c and so on."""
    made = [EchoServer("abcdefgh"[index], folder, port) for index, port in enumerate(ports)]
    try:
        for server in made:
            server.start()
        yield made
    finally:
        for server in made:
            server.kill()


if __name__ == "__main__":
    web.run_app(
        app_of(sys.argv[1], Path(sys.argv[3])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        print=None,
        access_log=None,
    )
