"""AWS Signature Version 4, checked: who signed a request, if it is fresh and whole.

For AWS's own clients, which can do nothing else. An HMAC needs the secret in the clear, so these credentials
are a kind of their own, in a file that only the gateway's user may read (`SigningKeys`), and not the API keys
of the registry, of which only a hash is kept.

- Signed must be the host, the date and every `x-amz-*` header that is there; the body always is.
- The date may be `SKEW_S` off. Within that time a request can be sent again by whoever sees it: use TLS.
- Query signatures (pre-signed URLs) and chunked signatures are refused.

Specification: AWS General Reference, "Signature Version 4 signing process".
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote, unquote

import msgspec

from routing.tenancy.identity import Credential, Unauthenticated
from routing.tenancy.principal import SCOPE, Principal
from runtime import settings_file
from runtime.settings_file import Section, SettingsError, Wrong

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "execute-api"
SKEW_S: Final = 300
HEADERS_MAX: Final = 64
AUTHORIZATION: Final = re.compile(
    rf"{ALGORITHM} +Credential=([A-Za-z0-9_-]{{1,128}})/(\d{{8}})/([a-z0-9-]{{1,64}})/([a-z0-9-]{{1,64}})"
    r"/aws4_request, *SignedHeaders=([a-z0-9;_-]{1,2048}), *Signature=([0-9a-f]{64})"
)
DATE: Final = re.compile(r"\d{8}T\d{6}Z")
KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class SigningKey(Section, frozen=True):
    """A credential: whoever has the secret speaks as `name` for `tenant`."""

    secret: Annotated[str, msgspec.Meta(min_length=16, max_length=256)]
    tenant: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9._~:@=-]{1,128}|\*)$")]
    scopes: list[str]
    name: str = ""


class SigningKeys(Section, frozen=True):
    """The file: `[keys.ID]` with `secret`, `tenant` and `scopes`."""

    keys: dict[str, SigningKey]


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as its signer saw it: `path` as it was sent, not decoded; headers with all their lines."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes


def load(path: Path) -> SigningKeys:
    """Read and check a file of keys; raises `SettingsError`, also when others may read it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(f"{path}: others may read the secrets: chmod 600 {path}")
    return settings_file.load(path, SigningKeys, check=_check)


def _check(keys: SigningKeys, wrong: Wrong) -> None:
    for name, key in keys.keys.items():
        if KEY_ID.fullmatch(name) is None:
            raise wrong(f"keys.{name}", "an id has letters, digits, _ and - only")
        for scope in key.scopes:
            if SCOPE.fullmatch(scope) is None:
                raise wrong(f"keys.{name}.scopes", f"{scope!r} is not resource:action")


def is_signed(authorization: str) -> bool:
    """Return whether an Authorization header is a signature of this kind."""
    return authorization.startswith(ALGORITHM)


def verify(
    request: SignedRequest, keys: Mapping[str, SigningKey], now_s: float, service: str = SERVICE
) -> Principal:
    """Return who signed a request for `service`; raises `Unauthenticated`."""
    headers = _canonical_headers(request.headers)
    parts = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if parts is None:
        raise Unauthenticated("not a signature of version 4 in the Authorization header")
    key_id, day, region, signed_for, names, signature = parts.groups()
    date = headers.get("x-amz-date", "")
    signed = names.split(";")
    _check_service(signed_for, service)
    _check_date(day, date, now_s)
    _check_signed(signed, headers)
    body_hash = hashlib.sha256(request.body).hexdigest()
    if headers.get("x-amz-content-sha256", body_hash) != body_hash:
        raise Unauthenticated("the hash of the body is another one")
    key = keys.get(key_id)
    scope = f"{day}/{region}/{signed_for}/aws4_request"
    text = canonical_request(request, {name: headers[name] for name in signed}, body_hash)
    to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(text.encode()).hexdigest()}"
    # An unknown id costs as much as a known one.
    expected = sign(key.secret if key else "-", scope, to_sign)
    if not hmac.compare_digest(expected, signature) or key is None:
        raise Unauthenticated("the signature does not fit the request, or its key is not known")
    return Principal(
        tenant=key.tenant,
        name=key.name or key_id,
        scopes=frozenset(key.scopes),
        credential=Credential.SIGV4,
        fingerprint=key_id,
    )


def _check_service(signed_for: str, service: str) -> None:
    if signed_for != service:
        raise Unauthenticated(f"signed for another service than {service}")


def _check_date(day: str, date: str, now_s: float) -> None:
    if DATE.fullmatch(date) is None or date[:8] != day:
        raise Unauthenticated("X-Amz-Date is missing, or is not of the day of the credential")
    try:
        signed_s = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise Unauthenticated("X-Amz-Date is no date") from error
    if abs(signed_s - now_s) > SKEW_S:
        raise Unauthenticated("the signature has expired, or a clock is wrong")


def _check_signed(signed: list[str], headers: Mapping[str, str]) -> None:
    if signed != sorted(set(signed)):
        raise Unauthenticated("SignedHeaders are not in order")
    if missing := [name for name in signed if name not in headers]:
        raise Unauthenticated(f"the signed header {missing[0]} is missing")
    wanted = {"host", "x-amz-date", *(name for name in headers if name.startswith("x-amz-"))}
    if unsigned := sorted(wanted.difference(signed)):
        raise Unauthenticated(f"the header {unsigned[0]} is not signed")


def _canonical_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for count, (name, value) in enumerate(lines):
        if count >= HEADERS_MAX:
            raise Unauthenticated(f"more than {HEADERS_MAX} headers")
        text = " ".join(value.split())
        lower = name.lower()
        headers[lower] = f"{headers[lower]},{text}" if lower in headers else text
    return headers


def canonical_request(request: SignedRequest, headers: Mapping[str, str], body_hash: str) -> str:
    """Return the text whose hash is signed."""
    pairs = [pair.partition("=") for pair in request.query.split("&") if pair]
    query = sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    lines = [
        request.method,
        quote(_normal(request.path), safe="/-_.~"),  # the path as sent is encoded once more
        "&".join(f"{name}={value}" for name, value in query),
        *(f"{name}:{value}" for name, value in sorted(headers.items())),
        "",
        ";".join(sorted(headers)),
        body_hash,
    ]
    return "\n".join(lines)


def sign(secret: str, scope: str, to_sign: str) -> str:
    """Return the signature of a text."""
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def _encoded(text: str) -> str:
    return quote(unquote(text.replace("+", "%20")), safe="-_.~")


def _normal(path: str) -> str:
    """Return a path without empty, `.` and `..` segments (RFC 3986, 6.2.2)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    normal = "/" + "/".join(kept)
    return normal + "/" if kept and path.endswith("/") else normal
