"""Starts `headworks api` as its users do, as a process on free ports, and ends it as the world does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from routing.tenancy.identity import Kind
from routing.tenancy.registry import Registry
from runtime import clock
from tests.support.gateway import free_port

START_DEADLINE_S = 20.0
PATIENCE_S = 10.0


class Said(msgspec.Struct, frozen=True):
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """Which problem it is."""
        return str(self.json["type"]).rpartition(":")[2]


class ApiGateway:
    """One gateway over plain HTTP, or what `api` and `extra` say; `routes` is the text of its routes file."""

    def __init__(
        self,
        folder: Path,
        routes: str,
        *,
        api: str = 'tls = "off"',
        extra: str = "",
        drain_deadline_s: float = 10,
    ) -> None:
        self.folder = folder
        self.port, self.admin = free_port(), free_port()
        self.routes = folder / "routes.toml"
        self.log = folder / "api.log"
        self.config = folder / "api.toml"
        self.routes.write_text(routes)
        self.config.write_text(
            f"""
[api]
bind = "127.0.0.1:{self.port}"
data_dir = "{folder}/api"
registry = "{folder}/registry.db"
routes = "{self.routes}"
reload_poll_s = 0.1
drain_deadline_s = {drain_deadline_s}
{api}
[admin]
bind = "127.0.0.1:{self.admin}"
{extra}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Its life.

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "commands.cli", "api", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.wait_until(lambda: self.get("/readyz")[0] == 200, START_DEADLINE_S)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it drain; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    # What it says to its operator.

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=3) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/status")[1]))

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric, 0 while there is none; over all values of labels that are left out."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        found = 0.0
        for line in self.get("/metrics")[1].decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and wanted <= set(series[len(name) + 1 : -1].split(",")):
                found += float(value)
        return found

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of the log that tell of an event."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line.get("event") == event]

    def wait_until(self, done: Callable[[], object], deadline_s: float = PATIENCE_S) -> None:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-4000:]
            if done():
                return
            time.sleep(0.02)
        raise AssertionError(f"not in {deadline_s} s\n{self.log.read_text()[-4000:]}")

    # What it is told.

    def change_routes(self, routes: str) -> None:
        """Write another routes file, whole at once, as an operator should."""
        beside = self.routes.with_suffix(".new")
        beside.write_text(routes)
        beside.rename(self.routes)

    def taken(self, before: float) -> Callable[[], bool]:
        """Return whether the routes were read again since there were `before` reloads."""
        return lambda: self.reloads() > before

    def reloads(self) -> float:
        return self.metric("headworks_api_reloads_total")

    @contextlib.contextmanager
    def registry(self) -> Iterator[Registry]:
        with contextlib.closing(Registry(self.folder / "registry.db")) as registry:
            yield registry

    def key(self, *scopes: str, tenant: str = "acme", name: str = "caller", plan: str = "") -> str:
        """Issue an API key, for a tenant that is made if need be; return its secret."""
        now_s = clock.unix_s()
        with self.registry() as registry:
            if tenant != "*":
                registry.add_tenant(tenant, "default", now_s)
            _, secret = registry.issue_key(
                tenant, name, Kind.CALLER, now_s, None, scopes=list(scopes), plan=plan
            )
        return secret

    def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        key: str = "",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Said:
        """Make one call on a connection of its own."""
        shown = {"X-API-Key": key} if key else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**shown, **(headers or {})})
            response = connection.getresponse()
            return Said(response.status, response.msg, response.read())


@contextlib.contextmanager
def api_gateway(folder: Path, routes: str, **options: Any) -> Iterator[ApiGateway]:
    """Run a gateway for one test, and leave nothing behind; it must drain well if it still runs."""
    node = ApiGateway(folder, routes, **options)
    try:
        node.start()
        yield node
        if node.process is not None and node.process.poll() is None:
            assert node.stop() == 0, node.log.read_text()[-4000:]
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()


@contextlib.asynccontextmanager
async def api_gateway_beside(folder: Path, routes: str, **options: Any) -> AsyncIterator[ApiGateway]:
    """Run a gateway for a test whose own loop answers for upstreams meanwhile."""
    node = ApiGateway(folder, routes, **options)
    try:
        await asyncio.to_thread(node.start)
        yield node
        if node.process is not None and node.process.poll() is None:
            assert await asyncio.to_thread(node.stop) == 0, node.log.read_text()[-4000:]
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()
