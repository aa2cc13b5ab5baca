"""Starts the gateway as its users do, as a process on free ports, and kills it as the world does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.pki import DevelopmentCa

START_DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Gateway:
    """One node: plain MQTT and HTTP with `auth = topic`, and both with mutual TLS."""

    def __init__(
        self, folder: Path, *, workers: int = 1, extra: str = "", sink: str = 'kind = "local"'
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.mqtt, self.http, self.mqtts, self.https, self.admin = (free_port() for _ in range(5))
        self.ca = DevelopmentCa.create(folder / "pki")
        server = self.ca.server(["localhost", "127.0.0.1"])
        self.config = folder / "headworks.toml"
        self.config.write_text(
            f"""
[node]
name = "test"
data_dir = "{self.data_dir}"
workers = {workers}
drain_deadline_s = 10
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{self.mqtt}"
tls = "off"
auth = ["topic"]
[[listeners]]
protocol = "http"
bind = "127.0.0.1:{self.http}"
tls = "off"
auth = ["topic", "api_key"]
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{self.mqtts}"
auth = ["certificate"]
[[listeners]]
protocol = "http"
bind = "127.0.0.1:{self.https}"
auth = ["certificate", "api_key"]
[tls]
certificate = "{server.certificate}"
key = "{server.key}"
client_ca = "{self.ca.ca_path}"
crl = "{self.ca.crl_path}"
[sink]
{sink}
[admin]
bind = "127.0.0.1:{self.admin}"
{extra}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "gateway.log"

    def start(self, *, wait: bool = True) -> None:
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "commands.cli", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        if wait:
            self.wait_until(lambda: self.get("/readyz")[0] == 200)

    def wait_until(self, done: Any, deadline_s: float = START_DEADLINE_S) -> None:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-4000:]
            if done():
                return
            time.sleep(0.05)
        raise AssertionError(f"not in {deadline_s} s; {self.get('/readyz')}\n{self.log.read_text()[-4000:]}")

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

    def metric(self, line_start: str) -> float:
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(line_start):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {line_start}")

    def kill_all(self) -> None:
        """kill -9 of the supervisor; its workers die with it, or at our hand."""
        assert self.process is not None
        children = self.children()
        self.process.kill()
        self.process.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            for _ in range(200):
                if not Path(f"/proc/{pid}").exists():
                    break
                time.sleep(0.01)

    def kill_worker(self, number: int = 0) -> None:
        pid = int(self.status()["workers"][number]["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def children(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise

    def delivered(self) -> bool:
        """Return whether nothing waits any more."""
        entries = self.status()["ledger"].values()
        return all(entry["spooled"] == 0 for entry in entries)


@contextlib.contextmanager
def gateway(folder: Path, **options: Any) -> Iterator[Gateway]:
    """Run a gateway for one test, and leave nothing behind."""
    node = Gateway(folder, **options)
    node.start()
    try:
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            try:
                node.stop()
            except subprocess.TimeoutExpired:
                node.kill_all()
