"""A whole platform on free ports: the ingestion gateway, the API gateway and its services, as processes."""

from __future__ import annotations

import asyncio
import contextlib
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

    def curl(self, *words: str) -> tuple[int, str]:
        """Return status and body of what curl gets."""
        command = ["curl", "-s", "-m", "20", "--cacert", str(self.node.ca.ca_path), "-w", "\n%{http_code}"]
        said = subprocess.run([*command, *words], check=True, capture_output=True, text=True).stdout
        body, _, status = said.rpartition("\n")
        return int(status), body


@contextlib.contextmanager
def platform(folder: Path) -> Iterator[Running]:
    ports = Ports(**{name: free_port() for name in Ports.__struct_fields__})
    node = DevNode(folder, ports)
    node.prepare(1)
    beside = Platform(node, PlatformPorts(**{name: free_port() for name in PlatformPorts.__struct_fields__}))
    with asyncio.Runner() as runner:
        try:
            runner.run(node.start())
            beside.prepare()
            runner.run(beside.start())
            yield Running(folder, node, beside)
        finally:
            codes = [runner.run(beside.stop()), runner.run(node.stop())]
    assert codes == [0, 0], "they drain"
