"""A whole platform on free ports: the ingestion gateway, the API gateway and its services, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from commands.demo.node import DevNode, Ports
from commands.demo.platform import Platform, PlatformPorts
from routing.tenancy.registry import Registry
from tests.support.gateway import free_port

JSON = ("-H", "Content-Type: application/json")
TENANT = "demo"


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


def platform_ports() -> PlatformPorts:
    """Return free ports."""
    return PlatformPorts(**{name: free_port() for name in PlatformPorts.__struct_fields__})


@contextlib.contextmanager
def platform(
    folder: Path,
    *,
    requests_per_s: float | None = None,
    ports: PlatformPorts | None = None,
    through: dict[int, int] | None = None,
) -> Iterator[Running]:
    """Run one; `requests_per_s` is what its tenants may ask, 0 without end, when it is not as usual.

    The gateway calls services `through` other ports than theirs, where those are given.
    """
    node = DevNode(folder, Ports(**{name: free_port() for name in Ports.__struct_fields__}))
    node.prepare(1)
    beside = Platform(node, ports or platform_ports())
    with asyncio.Runner() as runner:
        try:
            runner.run(node.start())
            beside.prepare()
            routes = (folder / "routes.toml").read_text()
            for own, other in (through or {}).items():
                routes = routes.replace(f'"127.0.0.1:{own}"', f'"127.0.0.1:{other}"')
            (folder / "routes.toml").write_text(routes)
            if requests_per_s is not None:
                settings = (folder / "api.toml").read_text()
                limit = f"requests_per_s = {requests_per_s}"
                (folder / "api.toml").write_text(settings.replace("requests_per_s = 200", limit))
            runner.run(beside.start())
            yield Running(folder, node, beside)
        finally:
            codes = [runner.run(beside.stop()), runner.run(node.stop())]
    assert codes == [0, 0], "they drain"


def certificate_for(running: Running, folder: Path, device: str) -> tuple[str, ...]:
    """Add a device and provision it as the README says; return what curl needs to be it."""
    key = ("-H", f"X-API-Key: {running.key}")
    devices = f"{running.url}/v1/tenants/{TENANT}/devices"
    status, body = running.curl(*key, *JSON, "-d", json.dumps({"device": device}), devices)
    assert status == 201, body
    request = folder / f"{device}.csr"
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(folder / f"{device}.key"), "-subj", f"/CN={device}", "-out", str(request)]
    subprocess.run(command, check=True, capture_output=True)
    asked = json.dumps({"csr": request.read_text()})
    status, body = running.curl(*key, *JSON, "-d", asked, f"{devices}/{device}/certificates")
    assert status == 201, body
    (folder / f"{device}.crt").write_text(json.loads(body)["certificate"])
    return ("--cert", str(folder / f"{device}.crt"), "--key", str(folder / f"{device}.key"))
