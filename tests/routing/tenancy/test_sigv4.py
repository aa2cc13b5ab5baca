"""Signatures of AWS's own signer are taken, and nothing else is."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from routing.tenancy import sigv4
from routing.tenancy.identity import Credential, Unauthenticated
from routing.tenancy.sigv4 import SignedRequest, SigningKey, verify
from runtime import clock
from runtime.settings_file import SettingsError

SECRET = "a-secret-of-some-length"
KEYS = {"AKONE": SigningKey(secret=SECRET, tenant="acme", scopes=["connections:write"], name="chat")}


def signed(
    path: str = "/@connections/abc",
    *,
    method: str = "POST",
    query: str = "",
    body: bytes = b"hello",
    headers: dict[str, str] | None = None,
    secret: str = SECRET,
    key: str = "AKONE",
    service: str = "execute-api",
) -> SignedRequest:
    """Return a request as botocore signs it."""
    url = f"https://api.example{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, data=body, headers={**(headers or {})})
    SigV4Auth(Credentials(key, secret), service, "eu-central-1").add_auth(request)
    lines = [(name, str(value)) for name, value in request.headers.items()]
    return SignedRequest(
        method=method, path=path, query=query, headers=[("Host", "api.example"), *lines], body=body
    )


def replaced(request: SignedRequest, name: str, value: str) -> SignedRequest:
    lines = [(key, value if key.lower() == name.lower() else old) for key, old in request.headers]
    return SignedRequest(
        method=request.method, path=request.path, query=request.query, headers=lines, body=request.body
    )


def refused(request: SignedRequest, now_s: float | None = None) -> str:
    with pytest.raises(Unauthenticated) as error:
        verify(request, KEYS, clock.unix_s() if now_s is None else now_s)
    assert SECRET not in str(error.value)
    return str(error.value)


def test_the_signer_is_known_with_its_tenant_and_scopes() -> None:
    caller = verify(signed(), KEYS, clock.unix_s())
    assert (caller.tenant, caller.name, caller.scopes) == ("acme", "chat", frozenset({"connections:write"}))
    assert (caller.credential, caller.fingerprint) == (Credential.SIGV4, "AKONE")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/@connections/a",
        "/%40connections/R0oX%3D",
        "/a//b/",
        "/a/./b/../c",
        "/%E2%82%AC/x%20y",
        "/stage/@connections/-_~.a",
    ],
)
def test_every_path_is_read_as_its_signer_read_it(path: str) -> None:
    verify(signed(path), KEYS, clock.unix_s())


@pytest.mark.parametrize("query", ["a=1&b=2", "b=2&a=1", "a=2&a=1", "a=", "x=%20y&z=%2F", "a%20b=c%3Dd"])
def test_a_query_is_signed_too(query: str) -> None:
    request = signed(query=query)
    verify(request, KEYS, clock.unix_s())
    other = SignedRequest(
        method=request.method,
        path=request.path,
        query=query + "&more=1",
        headers=request.headers,
        body=b"hello",
    )
    refused(other)


@given(
    body=st.binary(max_size=200),
    path=st.text(string.ascii_letters + string.digits + "-._~/@:", max_size=40),
    value=st.text(string.ascii_letters + " \t,;=", max_size=30),
)
def test_whatever_the_signer_signs_is_verified(body: bytes, path: str, value: str) -> None:
    request = signed("/" + path, body=body, headers={"X-Amz-Meta": value or "-", "X-Other": "y"})
    assert verify(request, KEYS, clock.unix_s()).tenant == "acme"


@given(position=st.integers(0, 4), bit=st.integers(0, 7))
def test_one_other_bit_of_the_body_is_noticed(position: int, bit: int) -> None:
    request = signed()
    body = bytearray(request.body)
    body[position] ^= 1 << bit
    refused(
        SignedRequest(
            method=request.method, path=request.path, query="", headers=request.headers, body=bytes(body)
        )
    )


def test_another_method_path_or_host_is_noticed() -> None:
    request = signed()
    for method, path in (("DELETE", request.path), ("POST", "/@connections/abd")):
        refused(SignedRequest(method=method, path=path, query="", headers=request.headers, body=request.body))
    refused(replaced(request, "Host", "other.example"))


def test_a_wrong_secret_and_an_unknown_key_are_refused_in_the_same_words() -> None:
    assert refused(signed(secret="another-secret-of-length")) == refused(signed(key="AKTWO"))


@pytest.mark.parametrize("off_s", [-301, 301, 86_400])
def test_what_is_not_of_now_is_refused(off_s: int) -> None:
    assert "expired" in refused(signed(), clock.unix_s() + off_s)


@pytest.mark.parametrize("off_s", [-290, 290])
def test_a_clock_may_be_off_by_minutes(off_s: int) -> None:
    verify(signed(), KEYS, clock.unix_s() + off_s)


def test_another_service_is_refused() -> None:
    assert "service" in refused(signed(service="s3"))


def test_a_header_of_amazons_that_is_not_signed_is_refused() -> None:
    request = signed()
    request.headers.append(("X-Amz-Extra", "1"))
    assert "x-amz-extra" in refused(request)


def test_a_signed_header_that_is_missing_is_refused() -> None:
    request = signed(headers={"X-Amz-Meta": "1"})
    lines = [line for line in request.headers if line[0] != "X-Amz-Meta"]
    refused(SignedRequest(method="POST", path=request.path, query="", headers=lines, body=request.body))


@pytest.mark.parametrize("digest", ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "0" * 64])
def test_a_body_is_never_taken_unsigned(digest: str) -> None:
    assert "body" in refused(signed(headers={"X-Amz-Content-SHA256": digest}))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=AKONE/20260101/eu/execute-api/aws4_request",
        "AWS4-HMAC-SHA256 Credential=A/B/C/D/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "Bearer x",
    ],
)
def test_what_is_no_signature_is_refused(header: str) -> None:
    refused(replaced(signed(), "Authorization", header))


def test_a_date_that_is_none_is_refused() -> None:
    request = signed()
    day = dict(request.headers)["X-Amz-Date"][:8]
    assert "no date" in refused(replaced(request, "X-Amz-Date", f"{day}T996199Z"))
    assert "day" in refused(replaced(request, "X-Amz-Date", "20010101T000000Z"))
    assert "day" in refused(replaced(request, "X-Amz-Date", "today"))


def test_headers_have_a_limit() -> None:
    request = signed()
    request.headers.extend([("X", "y")] * 70)
    assert "64 headers" in refused(request)


def test_the_headers_must_be_named_in_order_and_once() -> None:
    request = signed()
    text = dict(request.headers)["Authorization"].replace("host;x-amz-date", "x-amz-date;host")
    assert "order" in refused(replaced(request, "Authorization", text))


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


GOOD = '[keys.AKONE]\nsecret = "a-secret-of-some-length"\ntenant = "acme"\nscopes = ["connections:write"]\n'


def test_keys_come_from_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    keys = sigv4.load(write(tmp_path / "keys.toml", GOOD)).keys
    assert keys["AKONE"].tenant == "acme"
    for mode in (0o640, 0o604, 0o620):
        with pytest.raises(SettingsError, match="chmod 600"):
            sigv4.load(write(tmp_path / "keys.toml", GOOD, mode))


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("a-secret-of-some-length", "short"),
        GOOD.replace("connections:write", "everything"),
        GOOD.replace("AKONE", '"a b"'),
        GOOD.replace("acme", "a/b"),
        GOOD + "more = 1\n",
    ],
)
def test_a_file_that_makes_no_sense_is_refused_without_its_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as error:
        sigv4.load(write(tmp_path / "keys.toml", text))
    assert "a-secret-of-some-length" not in str(error.value)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        sigv4.load(tmp_path / "none.toml")
