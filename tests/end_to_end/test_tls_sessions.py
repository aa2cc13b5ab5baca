"""TLS sessions of a running node: a ticket is good on every worker, and not for who was revoked."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.pki import Issued
from tests.end_to_end.test_clients import client_tls, found, new_stream
from tests.end_to_end.test_refusals import failures
from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect, publish

pytestmark = pytest.mark.end_to_end
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
CONNECTIONS_MAX = 200
"""The kernel chooses the worker by a hash: that it always chooses the same one is not to be expected."""
CONNACK = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"


def of_version(node: Gateway, issued: Issued, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = client_tls(node, issued)
    context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def connected(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
    ):
        yield secure


def ticket_of(node: Gateway, context: ssl.SSLContext, device: str) -> ssl.SSLSession:
    """Return the session of a connection that was served."""
    with connected(node.mqtts, context) as secure:
        secure.sendall(connect(client=device))
        assert secure.recv(4) == CONNACK
        session = secure.session
        secure.sendall(DISCONNECT)
    assert session is not None
    return session


def worker_of(node: Gateway, client: socket.socket, port: int) -> int:
    """Return the process id of the worker that has the other end of a connection."""
    ends = f"{port:04X}", f"{client.getsockname()[1]:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next(row[9] for row in rows if (row[1][-4:], row[2][-4:]) == ends)
    for worker in node.status()["workers"]:
        for descriptor in Path(f"/proc/{worker['pid']}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == f"socket:[{inode}]":
                    return int(worker["pid"])
    raise AssertionError("nobody has it")


def workers(node: Gateway) -> set[int]:
    return {int(worker["pid"]) for worker in node.status()["workers"]}


def resumed_by(node: Gateway, context: ssl.SSLContext, session: ssl.SSLSession, device: str) -> Counter[int]:
    """Show a ticket until every worker has seen it twice; return how often each did. All must resume."""
    seen: Counter[int] = Counter()
    for _ in range(CONNECTIONS_MAX):
        with connected(node.mqtts, context, session) as secure:
            secure.sendall(connect(client=device))
            assert secure.recv(4) == CONNACK
            assert secure.session_reused, seen
            seen[worker_of(node, secure, node.mqtts)] += 1
            secure.sendall(DISCONNECT)
        if set(seen) == workers(node) and min(seen.values()) >= 2:
            return seen
    raise AssertionError(f"one worker only: {seen}")


@VERSIONS
def test_a_ticket_of_one_worker_resumes_on_every_worker(node: Gateway, version: ssl.TLSVersion) -> None:
    device, stream = f"ticket-{version.name}", new_stream()
    context = of_version(node, node.ca.device("acme", device), version)
    session = ticket_of(node, context, device)
    assert len(resumed_by(node, context, session, device)) == 2
    with connected(node.mqtts, context, session) as secure:
        body = b'{"ts": 1764000000000, "metrics": {"v": 1.5}}'
        secure.sendall(
            connect(client=device) + publish(topic=f"dt/acme/{device}/{stream}".encode(), payload=body)
        )
        assert secure.recv(8) == CONNACK
        assert secure.session_reused
        assert secure.recv(8) == b"\x40\x02\x00\x01", "the certificate still says whose it is"
        secure.sendall(DISCONNECT)
    assert found(node, stream, 1)[0][:2] == ("acme", device)


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes_on_every_worker(node: Gateway, tmp_path: Path, option: str) -> None:
    program = shutil.which("openssl")
    assert program is not None
    issued = node.ca.device("acme", f"openssl{option}")
    command = [program, "s_client", "-connect", f"127.0.0.1:{node.mqtts}", "-servername", "localhost", option]
    command += ["-CAfile", str(node.ca.ca_path), "-cert", str(issued.certificate), "-key", str(issued.key)]
    command += ["-verify_return_error", "-ign_eof"]
    ticket = tmp_path / "ticket.pem"

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        client = subprocess.Popen([*command, *arguments], stdin=pipe, stdout=pipe, stderr=pipe)
        assert client.stdin is not None
        client.stdin.write(connect(client="") + DISCONNECT)
        client.stdin.flush()
        return client

    def said(client: subprocess.Popen[bytes]) -> bytes:
        output, errors = client.communicate(timeout=30)
        assert CONNACK in output, errors
        return output

    assert b"New, TLSv1" in said(start("-sess_out", str(ticket)))
    clients = [start("-sess_in", str(ticket)) for _ in range(12)]  # all to one worker: once in 2,048 runs
    answers = [said(client) for client in clients]
    assert all(b"Reused, TLSv1" in answer for answer in answers)


@VERSIONS
def test_a_ticket_of_mqtt_resumes_over_http(node: Gateway, version: ssl.TLSVersion) -> None:
    device = f"both-{version.name}"
    context = of_version(node, node.ca.device("acme", device), version)
    with connected(node.https, context, ticket_of(node, context, device)) as secure:
        secure.sendall(b"POST /v1/telemetry/s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert secure.recv(1000).startswith(b"HTTP/1.1 4")
        assert secure.session_reused


def test_tickets_are_good_after_a_worker_was_killed_and_restarted(node: Gateway) -> None:
    context = of_version(node, node.ca.device("acme", "survivor"), ssl.TLSVersion.TLSv1_3)
    session = ticket_of(node, context, "survivor")
    before = workers(node)
    node.kill_worker(0)
    node.wait_until(lambda: 0 not in workers(node) and len(workers(node) - before) == 1)
    node.wait_until(lambda: node.get("/readyz")[0] == 200)
    assert len(set(resumed_by(node, context, session, "survivor")) - before) == 1


def revoke(node: Gateway, issued: Issued) -> None:
    """Revoke a certificate, and return when both workers know."""
    reloads = 'headworks_tls_reloads_total{result="ok"}'
    before = node.metric(reloads)
    node.ca.revoke(issued.certificate)
    node.wait_until(lambda: node.metric(reloads) == before + 2)


def is_refused(node: Gateway, context: ssl.SSLContext, session: ssl.SSLSession) -> bool:
    """Return whether the handshake fails; in TLS 1.3 a client hears of it at its first read."""
    try:
        with connected(node.mqtts, context, session) as secure:
            secure.sendall(connect())
            return not secure.recv(4)
    except OSError:
        return True


@VERSIONS
def test_a_resumed_session_of_a_revoked_device_is_refused_and_counted(
    node: Gateway, version: ssl.TLSVersion
) -> None:
    stolen, other = (node.ca.device("acme", f"{name}-{version.name}") for name in ("stolen", "other"))
    contexts = {issued: of_version(node, issued, version) for issued in (stolen, other)}
    sessions = {issued: ticket_of(node, contexts[issued], issued.key.stem) for issued in contexts}
    revoke(node, stolen)
    before = failures(node, "revoked")
    assert all(is_refused(node, contexts[stolen], sessions[stolen]) for _ in range(8))
    node.wait_until(lambda: failures(node, "revoked") == before + 8)
    context = contexts[other]
    with connected(node.mqtts, context, sessions[other]) as secure:
        secure.sendall(connect(client="other"))
        assert secure.recv(4) == CONNACK
        assert not secure.session_reused, "new trust ends old tickets, so that everybody is looked at again"
    resumed_by(node, context, ticket_of(node, context, "other"), "other")


@VERSIONS
def test_a_session_resumed_just_before_the_revocation_is_refused_at_its_first_word(
    node: Gateway, version: ssl.TLSVersion
) -> None:
    device = f"late-{version.name}"
    issued = node.ca.device("acme", device)
    context = of_version(node, issued, version)
    session = ticket_of(node, context, device)
    with (
        connected(node.mqtts, context, session) as mqtt,
        connected(node.https, context, session) as http,
    ):
        revoke(node, issued)
        before = failures(node, "revoked")
        mqtt.sendall(connect(client=device))
        assert mqtt.recv(4) == b"\x20\x02\x00\x04", "bad user name or password"
        assert mqtt.session_reused
        http.sendall(b"POST /v1/telemetry/s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        answer = http.recv(1000)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"the certificate is revoked" in answer
        assert http.session_reused
        assert failures(node, "revoked") == before + 2
