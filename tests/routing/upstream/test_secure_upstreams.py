"""TLS to servers: who they are is checked, and the gateway shows who it is."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from routing.gateway.routes_file import Retries, Upstream
from routing.upstream.call import Reason, UpstreamError
from tests.support.upstream_servers import call_of, running, servers, static, text_of

ONCE = Retries(attempts_max=1)


def context_of(ca: trustme.CA, *names: str, client_ca: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def written(folder: Path, ca: trustme.CA) -> str:
    path = folder / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


async def test_a_server_of_the_right_ca_and_name_is_asked(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with servers(1, context_of(ca, "127.0.0.1")) as made:
        upstream = Upstream(discovery=static(made), tls=True, ca=written(tmp_path, ca))
        async with running({"u": upstream}) as upstreams:
            for _ in range(3):
                assert (await text_of(upstreams, call_of()))[0] == 200


async def test_a_name_may_be_set_for_servers_that_are_found_by_address(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with servers(1, context_of(ca, "pumps.example")) as made:
        path = written(tmp_path, ca)
        right = Upstream(discovery=static(made), tls=True, ca=path, server_name="pumps.example")
        wrong = Upstream(discovery=static(made), tls=True, ca=path, server_name="other.example")
        unset = Upstream(discovery=static(made), tls=True, ca=path)
        async with running({"right": right, "wrong": wrong, "unset": unset}) as upstreams:
            assert (await text_of(upstreams, call_of(), "right"))[0] == 200
            for name in ("wrong", "unset"):
                with pytest.raises(UpstreamError) as raised:
                    await text_of(upstreams, call_of(retries=ONCE), name)
                assert raised.value.reason is Reason.CONNECT


async def test_a_server_of_another_ca_is_refused(tmp_path: Path) -> None:
    async with servers(1, context_of(trustme.CA(), "127.0.0.1")) as made:
        upstream = Upstream(discovery=static(made), tls=True, ca=written(tmp_path, trustme.CA()))
        async with running({"u": upstream}) as upstreams:
            with pytest.raises(UpstreamError) as raised:
                await text_of(upstreams, call_of(retries=ONCE))
            assert raised.value.reason is Reason.CONNECT
            assert made[0].seen == 0


async def test_the_gateway_shows_its_own_certificate(tmp_path: Path) -> None:
    ca = trustme.CA()
    own = ca.issue_cert("gateway.example")
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    own.cert_chain_pems[0].write_to_path(str(certificate))
    own.private_key_pem.write_to_path(str(key))
    async with servers(1, context_of(ca, "127.0.0.1", client_ca=ca)) as made:
        path = written(tmp_path, ca)
        shown = Upstream(
            discovery=static(made), tls=True, ca=path, certificate=str(certificate), key=str(key)
        )
        hidden = Upstream(discovery=static(made), tls=True, ca=path)
        async with running({"shown": shown, "hidden": hidden}) as upstreams:
            assert (await text_of(upstreams, call_of(), "shown"))[0] == 200
            with pytest.raises(UpstreamError):
                await text_of(upstreams, call_of(retries=ONCE), "hidden")
