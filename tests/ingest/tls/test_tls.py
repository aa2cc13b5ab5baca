"""Certificates name devices; sets of files load whole or not at all; tickets are good on every worker."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from ingest.pki import DevelopmentCa, PkiError
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Kind, Unauthenticated
from runtime import clock
from runtime.tls.material import TlsFiles, TlsMaterial, TlsMaterialError, load
from runtime.tls.store import TlsStore


def subject(tenant: str | None, device: str | None) -> tuple[Any, ...]:
    parts = []
    if tenant is not None:
        parts.append((("organizationName", tenant),))
    if device is not None:
        parts.append((("commonName", device),))
    return tuple(parts)


def named(*uris: str, **names: str | None) -> dict[str, Any]:
    return {
        "subject": subject(names.get("tenant"), names.get("device")),
        "issuer": subject("ca", None),
        "serialNumber": "0A",
        "notAfter": "Nov 24 12:00:00 2036 GMT",
        "subjectAltName": tuple(("URI", uri) for uri in uris),
    }


def test_a_spiffe_uri_goes_before_the_subject() -> None:
    certificate = named("spiffe://x.example/tenant/t/gateway/g", tenant="o", device="d")
    identity = CertificateNames("").identity(certificate)
    assert (identity.tenant, identity.name, identity.kind) == ("t", "g", Kind.GATEWAY)
    assert identity.expires_s == 2_111_140_800
    assert identity.fingerprint.endswith(":a")


def test_the_subject_names_a_device() -> None:
    identity = CertificateNames("").identity(named(tenant="o", device="d"))
    assert (identity.tenant, identity.name, identity.kind) == ("o", "d", Kind.DEVICE)


@pytest.mark.parametrize(
    "certificate",
    [
        named("spiffe://x/tenant/t/device/d", "spiffe://x/tenant/t/device/e"),
        named("spiffe://x/tenant/t"),
        named("spiffe://x/tenant/t/device/a/b"),
        named("spiffe://x/tenant/t+/device/d"),
        named("spiffe://x/tenant//device/d"),
        named("spiffe://other/tenant/t/device/d"),
        named(tenant="o"),
        named(device="d"),
        named(tenant="o", device="a/b"),
        named(tenant="o", device="#"),
        named(),
    ],
)
def test_a_certificate_that_names_nobody_or_two_is_refused(certificate: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        CertificateNames("x").identity(certificate)


@pytest.fixture
def files(tmp_path: Path) -> tuple[DevelopmentCa, TlsFiles]:
    ca = DevelopmentCa.create(tmp_path)
    server = ca.server(["localhost"])
    return ca, TlsFiles(certificate=server.certificate, key=server.key, client_ca=ca.ca_path, crl=ca.crl_path)


def loaded(files: TlsFiles, secret: bytes = b"s" * 32) -> TlsMaterial:
    return load(files, node_secret=secret, now_s=clock.unix_s())


def serve_once(context: ssl.SSLContext, sock: socket.socket, seen: list[Any]) -> None:
    with context.wrap_socket(sock, server_side=True) as secure:
        secure.sendall(b"x")
        seen.append(secure.getpeercert())
        secure.recv(1)


def resumes(
    first: ssl.SSLContext, second: ssl.SSLContext, ca: DevelopmentCa, version: ssl.TLSVersion
) -> bool:
    """Make a session with one server context and show its ticket to the other."""
    issued = ca.device("t", "d")
    client = ssl.create_default_context(cafile=str(ca.ca_path))
    client.load_cert_chain(issued.certificate, issued.key)
    client.minimum_version = client.maximum_version = version
    session: ssl.SSLSession | None = None
    reused = False
    for context in (first, second):
        ours, theirs = socket.socketpair()
        seen: list[Any] = []

        thread = threading.Thread(target=serve_once, args=(context, theirs, seen))
        thread.start()
        with client.wrap_socket(ours, server_hostname="localhost", session=session) as secure:
            secure.recv(1)
            session, reused = secure.session, bool(secure.session_reused)
            secure.sendall(b"x")
        thread.join(5)
        assert seen[0]["subject"], "the certificate is known also when resumed"
    return reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_ticket_of_one_worker_resumes_on_another(
    files: tuple[DevelopmentCa, TlsFiles], version: ssl.TLSVersion
) -> None:
    ca, paths = files
    first, second, stranger = loaded(paths), loaded(paths), loaded(paths, b"o" * 32)
    assert first.tickets_shared
    key = (True, "mqtt")
    assert resumes(first.contexts[key], second.contexts[key], ca, version)
    assert not resumes(first.contexts[key], stranger.contexts[key], ca, version)


def test_a_new_revocation_list_ends_all_tickets(files: tuple[DevelopmentCa, TlsFiles]) -> None:
    ca, paths = files
    before = loaded(paths)
    ca.revoke(ca.device("t", "stolen").certificate)
    after = loaded(paths)
    assert len(after.revoked) == 1
    key = (True, "mqtt")
    assert not resumes(before.contexts[key], after.contexts[key], ca, ssl.TLSVersion.TLSv1_3)


def test_a_set_that_does_not_load_is_named_and_the_old_one_stays(
    files: tuple[DevelopmentCa, TlsFiles],
) -> None:
    ca, paths = files
    heard: list[str | None] = []
    store = TlsStore(paths, node_secret=b"s" * 32, reloaded=lambda _, error: heard.append(error))
    current = store.current
    store.poll()
    assert heard == [], "nothing has changed"
    paths.key.write_bytes(ca.device("t", "d").key.read_bytes())
    store.poll()
    store.poll()
    assert len(heard) == 1
    assert "do not go together" in str(heard[0])
    assert store.current is current
    ca.server(["localhost"])
    store.poll()
    assert heard[1:] == [None]
    assert store.current is not current


@pytest.mark.parametrize("name", ["certificate", "key", "client_ca", "crl"])
def test_each_file_of_a_set_can_be_wrong(files: tuple[DevelopmentCa, TlsFiles], name: str) -> None:
    path: Path = getattr(files[1], name)
    path.write_bytes(b"not PEM")
    with pytest.raises(TlsMaterialError, match=str(path)):
        loaded(files[1])
    path.unlink()
    with pytest.raises(TlsMaterialError, match=str(path)):
        loaded(files[1])


def test_an_expired_server_certificate_is_refused(files: tuple[DevelopmentCa, TlsFiles]) -> None:
    files[0].server(["localhost"], days=0)
    with pytest.raises(TlsMaterialError, match="expired"):
        load(files[1], node_secret=b"", now_s=clock.unix_s() + 1)


def test_the_development_ca_keeps_its_keys_to_itself(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="headworks pki init"):
        DevelopmentCa(tmp_path)
    ca = DevelopmentCa.create(tmp_path)
    issued = ca.device("t", "d")
    for path in (tmp_path / "ca.key", issued.key):
        assert path.stat().st_mode & 0o077 == 0
    serial = ca.revoke(issued.certificate)
    ca.revoke(issued.certificate)
    assert DevelopmentCa.create(tmp_path).revoked() == [serial]
    with pytest.raises(PkiError):
        ca.revoke(tmp_path / "nothing")
