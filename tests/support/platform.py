"""A whole platform on free ports: the ingestion gateway, the API gateway and its services, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from commands.demo.node import DevNode, Ports
from commands.demo.platform import Platform, PlatformPorts
from routing.tenancy.registry import Registry
from tests.support.gateway import free_port


class Running:
    """A platform that runs."""

    def __init__(self, folder: Path, node: DevNode, platform: Platform) -> None:
        self.folder = folder
        self.node = node
        self.platform = platform
        self.url = f"https://localhost:{platform.ports.api}"
        self.ingest_url = f"https://localhost:{node.ports.https}"

    @property
    def key(self) -> str:
        return self.platform.key_file.read_text().strip()

    def registry(self) -> contextlib.closing[Registry]:
        return contextlib.closing(Registry(self.folder / "registry.db"))

    def tls(self) -> ssl.SSLContext:
        """Return what a client trusts the platform with."""
        return ssl.create_default_context(cafile=str(self.node.ca.ca_path))

    def curl(self, *words: str) -> tuple[int, str]:
        """Return status and body of what curl gets."""
        command = ["curl", "-s", "-m", "20", "--cacert", str(self.node.ca.ca_path), "-w", "\n%{http_code}"]
        said = subprocess.run([*command, *words], check=True, capture_output=True, text=True).stdout
        body, _, status = said.rpartition("\n")
        return int(status), body


@contextlib.contextmanager
def platform(folder: Path, *, requests_per_s: float | None = None) -> Iterator[Running]:
    """Run one; `requests_per_s` is what its tenants may ask, 0 without end, when it is not as usual."""
    ports = Ports(**{name: free_port() for name in Ports.__struct_fields__})
    node = DevNode(folder, ports)
    node.prepare(1)
    beside = Platform(node, PlatformPorts(**{name: free_port() for name in PlatformPorts.__struct_fields__}))
    with asyncio.Runner() as runner:
        try:
            runner.run(node.start())
            beside.prepare()
            if requests_per_s is not None:
                settings = (folder / "api.toml").read_text()
                limit = f"requests_per_s = {requests_per_s}"
                (folder / "api.toml").write_text(settings.replace("requests_per_s = 200", limit))
            runner.run(beside.start())
            yield Running(folder, node, beside)
        finally:
            codes = [runner.run(beside.stop()), runner.run(node.stop())]
    assert codes == [0, 0], "they drain"
