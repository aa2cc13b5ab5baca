"""From what a peer shows to who it is: certificate, JWT, API key, or (on loopback) the topic.

Which of these a listener takes is its `auth`. Synchronous: keys are fetched beside (`ingest.tls`,
`routing.tenancy.jwt`), so that a connect never waits on the network.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import msgspec

from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated

ANYONE: Final = Identity(tenant="", name="", kind=Kind.ANYONE, credential=Credential.TOPIC)


class Door(msgspec.Struct, frozen=True):
    """A listener as authentication sees it."""

    name: str
    credentials: frozenset[Credential]


class Peer(msgspec.Struct, frozen=True):
    """What is known of a peer below its protocol. `certificate` is as `ssl.SSLObject.getpeercert`."""

    address: str
    certificate: dict[str, Any] | None


def peer_of_socket(sock: socket.socket, address: str) -> Peer:
    """Return what a socket knows of its peer; with TLS, after the handshake."""
    certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    return Peer(address, certificate or None)


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Return what a transport knows of its peer."""
    name = transport.get_extra_info("peername")
    address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
    tls = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert() if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
    if certificate is None and tls is not None:
        certificate = transport.get_extra_info("peercert")
    return Peer(address, certificate or None)


class Authenticator:
    """Holds what credentials are checked against; each check raises `Unauthenticated`."""

    def __init__(
        self,
        *,
        certificate: Callable[[dict[str, Any]], Identity],
        jwt: Callable[[str], Identity] | None,
        api_key: Callable[[str], Identity],
    ) -> None:
        self._certificate = certificate
        self._jwt = jwt
        self._api_key = api_key

    def of_mqtt(self, door: Door, peer: Peer, password: bytes | None) -> Identity:
        """Return who connects with MQTT: a JWT in the password goes before the certificate."""
        if password and Credential.JWT in door.credentials and self._jwt is not None:
            return self._jwt(_ascii(password))
        return self._without_token(door, peer)

    def of_http(self, door: Door, peer: Peer, authorization: str | None, api_key: str | None) -> Identity:
        """Return who makes a request: a bearer token, then an API key, then the certificate."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and Credential.JWT in door.credentials and self._jwt is not None:
            return self._jwt(token.strip())
        if api_key and Credential.API_KEY in door.credentials:
            return self._api_key(api_key)
        return self._without_token(door, peer)

    def _without_token(self, door: Door, peer: Peer) -> Identity:
        if peer.certificate is not None and Credential.CERTIFICATE in door.credentials:
            return self._certificate(peer.certificate)
        if Credential.TOPIC in door.credentials:
            return ANYONE
        wanted = ", ".join(sorted(credential.value for credential in door.credentials))
        raise Unauthenticated(f"this listener asks for: {wanted}")


def _ascii(password: bytes) -> str:
    try:
        return password.decode("ascii")
    except UnicodeDecodeError as error:
        raise Unauthenticated("the token is not ASCII") from error
