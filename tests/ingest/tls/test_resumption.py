"""A ticket is good for what its session has proved, and for nothing more."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from ingest.pki import DevelopmentCa
from runtime import clock
from runtime.tls.material import TlsFiles, load


def serve_once(context: ssl.SSLContext, sock: socket.socket, refused: list[ssl.SSLError]) -> None:
    try:
        with context.wrap_socket(sock, server_side=True) as secure:
            secure.sendall(b"x")
            secure.recv(1)
    except ssl.SSLError as error:
        refused.append(error)
    finally:
        sock.close()


def ticket(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """Return the session of one connection, and whether it went on with `session`."""
    ours, theirs = socket.socketpair()
    refused: list[ssl.SSLError] = []
    thread = threading.Thread(target=serve_once, args=(server, theirs, refused))
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname="localhost", session=session) as secure:
            secure.recv(1)
            return secure.session, bool(secure.session_reused)
    finally:
        ours.close()
        thread.join(10)
        for error in refused:
            raise error


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_without_a_certificate_is_not_resumed_where_one_is_asked_for(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    ca = DevelopmentCa.create(tmp_path)
    server = ca.server(["localhost"])
    files = TlsFiles(certificate=server.certificate, key=server.key, client_ca=ca.ca_path, crl=ca.crl_path)
    contexts = load(files, node_secret=b"s" * 32, now_s=clock.unix_s()).contexts
    client = ssl.create_default_context(cafile=str(ca.ca_path))
    client.minimum_version = client.maximum_version = version
    session, _ = ticket(contexts[False, "mqtt"], client, None)
    assert ticket(contexts[False, "http"], client, session)[1], "it is good at another open listener"
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        ticket(contexts[True, "mqtt"], client, session)
