"""A service as its operators run it: `headworks service NAME`, a process, asked with passports of a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.gateway import free_port
from tests.support.passports import Passports

DEADLINE_S = 30.0


class ServiceProcess:
    """One service; `settings` follow its section [service]."""

    def __init__(self, folder: Path, name: str, settings: str) -> None:
        self.folder = folder
        self._name = name
        self._port = free_port()
        self._passports = Passports(folder / "passport.pub")
        self._log = folder / f"{name}.log"
        self._config = folder / "services.toml"
        self._config.write_text(f'[service]\ndata_dir = "{folder}"\n{settings}')
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is well."""
        command = [sys.executable, "-m", "commands.cli", "service", self._name, "--config", str(self._config)]
        command += ["--set", f'{self._name}.bind="127.0.0.1:{self._port}"']
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.until(lambda: self.get("/healthz")[0] == 200)

    def get(self, path: str, **claims: Any) -> tuple[int, Any]:
        """Return status and body of what a caller gets; (0, None) when nobody answers."""
        headers = self._passports.headers(self._name, **claims)
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # a service of ours
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except OSError:
            return 0, None
        return status, json.loads(body) if body.startswith((b"{", b"[")) else body.decode()

    def until(self, holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        """Wait until something holds."""
        ends_s = time.monotonic() + deadline_s
        while not holds():
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < ends_s, self._log.read_text()[-4000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it drain; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def service_process(folder: Path, name: str, settings: str) -> Iterator[ServiceProcess]:
    """Run a service for one test, and leave nothing behind."""
    folder.mkdir(exist_ok=True)
    service = ServiceProcess(folder, name, settings)
    service.start()
    try:
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()
