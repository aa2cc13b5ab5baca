"""One mutual TLS handshake with the gateway's own context, in memory: what both ends of it compute."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from ingest.pki import DevelopmentCa
from runtime import clock
from runtime.tls.material import TlsFiles, load

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def contexts(folder: Path, version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of the gateway and of a device."""
    ca = DevelopmentCa.create(folder)
    issued = ca.server(["localhost"])
    files = TlsFiles(certificate=issued.certificate, key=issued.key, client_ca=ca.ca_path, crl=ca.crl_path)
    server = load(files, node_secret=b"s" * 32, now_s=clock.unix_s()).contexts[True, "mqtt"]
    client = ssl.create_default_context(cafile=str(ca.ca_path))
    own = ca.device("acme", "pump-7")
    client.load_cert_chain(own.certificate, own.key)
    client.minimum_version = client.maximum_version = version
    return server, client


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLObject:
    """Return the client's end of a new connection."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    waiting = [theirs, ours]
    while waiting:
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    return theirs


@pytest.mark.parametrize("resumed", [False, True], ids=["full", "resumed"])
@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_handshake(benchmark: Any, tmp_path: Path, version: ssl.TLSVersion, *, resumed: bool) -> None:
    server, client = contexts(tmp_path, version)
    session = None
    if resumed:
        first = shake_hands(server, client, None)
        with contextlib.suppress(ssl.SSLWantReadError):
            first.read(1)  # TLS 1.3 sends its tickets after the handshake
        session = first.session
    assert benchmark(shake_hands, server, client, session).session_reused is resumed
