"""A device from its claim to its end, against a real ingestion gateway: out means out within a second."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.end_to_end.test_clients import found, new_stream
from tests.support.device_service import SCOPES, signing_request
from tests.support.gateway import Gateway, free_port
from tests.support.mqtt_packets import connect, publish
from tests.support.passports import Passports

pytestmark = pytest.mark.end_to_end
BODY = b'{"ts": 1764000000000, "metrics": {"v": 1.5}}'
WITHIN_S = 1.0
DEADLINE_S = 10.0
CONNECTED, SUSPENDED = b"\x20\x02\x00\x00", b"\x20\x02\x00\x05"


class Platform:
    """An ingestion gateway that serves registered devices only, and the device service beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = Gateway(folder, workers=2)
        text = self.node.config.read_text()
        self.node.config.write_text(text.replace("[node]\n", '[node]\nregistration = "registered"\n'))
        self.passports = Passports(folder / "passport.pub")
        self.port = free_port()
        config = folder / "services.toml"
        config.write_text(
            f"""
[service]
data_dir = "{folder}/services"
registry = "{self.node.data_dir}/registry.db"
passport_key = "{self.passports.path}"
[device]
bind = "127.0.0.1:{self.port}"
ca_dir = "{self.node.ca.folder}"
"""
        )
        self._command = [sys.executable, "-m", "commands.cli", "service", "device", "--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.node.start()
        self.start_service()

    def start_service(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.node.wait_until(self._is_up)

    def _is_up(self) -> bool:
        url = f"{self.url}/healthz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def stop_service(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, *, tenant: str = "acme", scopes: str = SCOPES
    ) -> tuple[int, Any]:
        headers = self.passports.headers("device", tenant=tenant, scopes=scopes)
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"))
    try:
        made.start()
        assert made.call("POST", "/v1/tenants", {"tenant": "acme"}, tenant="*")[0] == 201
        yield made
        made.stop_service()
        assert made.node.stop() == 0
    finally:
        if made._process is not None and made._process.poll() is None:
            made._process.kill()
        if made.node.process is not None and made.node.process.poll() is None:
            made.node.kill_all()


class Device:
    """A device: it has a key that never leaves it, and gets a certificate for that."""

    def __init__(self, platform: Platform, name: str) -> None:
        self._platform = platform
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.serial = ""
        self._certificate = ""

    def provision(self, token: str) -> int:
        body = {"csr": signing_request(self.key), "device": self.name, "token": token}
        status, made = self._platform.call("POST", "/v1/provision", body, tenant="", scopes="")
        if status == 201:
            self.use(made)
        return status

    def use(self, made: dict[str, Any]) -> None:
        self._certificate, self.serial = made["certificate"], made["serial"]

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._platform.node.ca.ca_path))
        path = self._platform.folder / f"{self.name}-{self.serial}.pem"
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(self._certificate.encode() + key)
        context.load_cert_chain(path)
        return context

    def connect(self, opened: contextlib.ExitStack) -> tuple[ssl.SSLSocket, bytes]:
        """Connect, and return what the gateway answers; empty when it closes without a word."""
        plain = socket.create_connection(("127.0.0.1", self._platform.node.mqtts), DEADLINE_S)
        opened.callback(plain.close)
        try:
            secure = self.tls().wrap_socket(plain, server_hostname="localhost")
            opened.callback(secure.close)
            secure.sendall(connect(client=self.name))
            return secure, secure.recv(200)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return plain, b""  # type: ignore[return-value]  # nothing will be sent over it

    def publish(self, secure: ssl.SSLSocket, stream: str) -> bytes:
        secure.sendall(publish(topic=f"dt/acme/{self.name}/{stream}".encode(), payload=BODY))
        return secure.recv(100)

    @property
    def path(self) -> str:
        return f"/v1/tenants/acme/devices/{self.name}"


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def provisioned(platform: Platform) -> Callable[[str], Device]:
    def make(name: str) -> Device:
        _, claim = platform.call("POST", "/v1/tenants/acme/claims", {"devices": name})
        device = Device(platform, name)
        assert device.provision(claim["token"]) == 201
        return device

    return make


def wait_until(when_s: float) -> None:
    """Wait: by then every worker must know."""
    time.sleep(max(0.0, when_s - time.monotonic()))


def closed_after_s(secure: ssl.SSLSocket, since_s: float) -> float:
    """Return how long after a time a connection was closed."""
    try:
        while secure.recv(1000):
            pass
    except TimeoutError:
        raise
    except OSError:
        pass
    return time.monotonic() - since_s


def test_a_device_is_provisioned_publishes_and_is_out_when_its_certificate_is_revoked(
    platform: Platform, provisioned: Callable[[str], Device], opened: contextlib.ExitStack
) -> None:
    device, neighbour, stream = provisioned("pump"), provisioned("valve"), new_stream()
    secure, answer = device.connect(opened)
    assert answer == CONNECTED
    assert device.publish(secure, stream) == b"\x40\x02\x00\x01"
    assert [row[:2] for row in found(platform.node, stream, 1)] == [("acme", "pump")]
    stays, _ = neighbour.connect(opened)

    assert platform.call("DELETE", f"{device.path}/certificates/{device.serial}")[0] == 204
    revoked_s = time.monotonic()
    assert closed_after_s(secure, revoked_s) < WITHIN_S
    wait_until(revoked_s + WITHIN_S)
    assert [device.connect(opened)[1] for _ in range(4)] == [b""] * 4, "refused by every worker"
    assert neighbour.publish(stays, stream)[:1] == b"\x40", "its neighbour is served all the while"

    status, made = platform.call("POST", f"{device.path}/certificates", {"csr": signing_request(device.key)})
    assert status == 201
    device.use(made)
    assert device.connect(opened)[1] == CONNECTED, "with another certificate it is welcome"


def test_a_device_that_is_suspended_is_out_until_it_is_resumed(
    platform: Platform, provisioned: Callable[[str], Device], opened: contextlib.ExitStack
) -> None:
    device = provisioned("fan")
    secure, answer = device.connect(opened)
    assert answer == CONNECTED
    assert platform.call("POST", f"{device.path}/suspend")[0] == 200
    suspended_s = time.monotonic()
    assert closed_after_s(secure, suspended_s) < WITHIN_S
    wait_until(suspended_s + WITHIN_S)
    assert [device.connect(opened)[1] for _ in range(4)] == [SUSPENDED] * 4
    assert platform.call("POST", f"{device.path}/resume")[0] == 200
    wait_until(time.monotonic() + WITHIN_S)
    assert device.connect(opened)[1] == CONNECTED


def test_both_certificates_are_good_while_one_replaces_the_other(
    platform: Platform, provisioned: Callable[[str], Device], opened: contextlib.ExitStack
) -> None:
    device = provisioned("motor")
    old, _ = device.connect(opened)
    body = {"csr": signing_request(device.key), "overlap_s": 3.0}
    status, made = platform.call("POST", f"{device.path}/certificates/{device.serial}/rotate", body)
    began_s = time.monotonic()
    assert status == 201
    renewed = Device(platform, "motor")
    renewed.key = device.key
    renewed.use(made)
    assert device.publish(old, new_stream())[:1] == b"\x40"
    new, answer = renewed.connect(opened)  # the same client: it takes the session over
    assert answer == CONNECTED
    second, answer = device.connect(opened)
    assert answer == CONNECTED
    ended_s = closed_after_s(second, began_s)
    assert 2.0 < ended_s < 3.0 + 2 * WITHIN_S, "when the overlap is over"
    wait_until(time.monotonic() + WITHIN_S)
    assert device.connect(opened)[1] == b""
    assert renewed.connect(opened)[1] == CONNECTED
    del new


def test_a_device_that_is_removed_is_out_for_good(
    platform: Platform, provisioned: Callable[[str], Device], opened: contextlib.ExitStack
) -> None:
    device = provisioned("lamp")
    secure, _ = device.connect(opened)
    assert platform.call("POST", f"{device.path}/erase")[0] == 200
    erased_s = time.monotonic()
    assert closed_after_s(secure, erased_s) < WITHIN_S
    wait_until(erased_s + WITHIN_S)
    assert [device.connect(opened)[1] for _ in range(4)] == [b""] * 4


def test_the_service_comes_back_with_all_it_knew(
    platform: Platform, provisioned: Callable[[str], Device]
) -> None:
    device = provisioned("boiler")
    platform.call("PATCH", f"{device.path}/shadow/desired", {"warm": True})
    platform.stop_service()
    platform.start_service()
    status, shadow = platform.call("GET", f"{device.path}/shadow")
    assert (status, shadow["delta"]) == (200, {"warm": True})
    status, listed = platform.call("GET", f"{device.path}/certificates")
    assert [each["serial"] for each in listed["items"]] == [device.serial]
