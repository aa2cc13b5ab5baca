"""Who may come in: the registry, API keys and tokens. Missing means closed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from ingest.settings import Jwt
from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated
from routing.tenancy.jwt import JwtVerifier
from routing.tenancy.registry import Registry, RegistryError, Status, Verdict


def identity(kind: Kind) -> Identity:
    return Identity(tenant="t", name="d", kind=kind, credential=Credential.CERTIFICATE)


@pytest.mark.parametrize(
    ("kind", "own", "sibling", "foreign"),
    [(Kind.DEVICE, True, False, False), (Kind.GATEWAY, True, True, False), (Kind.ANYONE, True, True, True)],
)
def test_an_identity_reaches_as_far_as_its_kind(kind: Kind, own: bool, sibling: bool, foreign: bool) -> None:
    who = identity(kind)
    assert who.may_publish_for("t", "d") is own
    assert who.may_publish_for("t", "e") is sibling
    assert who.may_publish_for("u", "d") is foreign


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.db")


def test_an_open_registry_lets_everybody_in_but_the_suspended(registry: Registry) -> None:
    assert registry.judge("t", "d", registered_only=False) is Verdict.ADMITTED
    registry.set_device_status("t", "d", Status.SUSPENDED, 1.0)
    assert registry.judge("t", "d", registered_only=False) is Verdict.SUSPENDED
    registry.set_device_status("t", "d", Status.ACTIVE, 1.0)
    registry.set_tenant_status("t", Status.SUSPENDED, 1.0)
    assert registry.judge("t", "d", registered_only=False) is Verdict.SUSPENDED


def test_a_closed_registry_wants_tenant_and_device(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="headworks tenants add t"):
        registry.add_devices("t", ["d"], 1.0)
    registry.add_tenant("t", "gold", 1.0)
    assert registry.judge("t", "d", registered_only=True) is Verdict.NOT_REGISTERED
    assert registry.add_devices("t", ["d", "d", "e"], 1.0) == 2
    assert registry.judge("t", "d", registered_only=True) is Verdict.ADMITTED
    assert registry.plan_of("t") == "gold"
    assert registry.plan_of("u") == "default"


def test_another_process_is_noticed(registry: Registry, tmp_path: Path) -> None:
    assert not registry.changed()
    Registry(tmp_path / "registry.db").add_tenant("t", "default", 1.0)
    assert registry.changed()
    assert not registry.changed()


def test_a_key_is_kept_as_a_hash_only(registry: Registry, tmp_path: Path) -> None:
    key, secret = registry.issue_key("t", "d", Kind.DEVICE, 1.0, expires_s=100.0)
    who = registry.identity_of_key(secret, 50.0)
    assert who is not None
    assert (who.tenant, who.name, who.fingerprint) == ("t", "d", key.id)
    assert registry.identity_of_key(secret, 100.0) is None, "expired"
    for wrong in ("", "hw_", "hw__", f"hw_{key.id}_", secret[:-1], "x" + secret, "hw_none_" + "0" * 64):
        assert registry.identity_of_key(wrong, 50.0) is None
    registry.revoke_key(key.id)
    assert registry.identity_of_key(secret, 50.0) is None
    with pytest.raises(RegistryError):
        registry.revoke_key("none")
    stored = sqlite3.connect(tmp_path / "registry.db").execute("SELECT * FROM api_keys").fetchall()
    assert secret.split("_")[2] not in repr(stored)


KEYS: dict[str, tuple[Any, Any]] = {
    "RS256": (rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
}
CLAIMS = {"tenant": "t", "device": "d", "exp": 4_000_000_000, "aud": "headworks", "iss": "issuer"}


def token(algorithm: str, claims: dict[str, Any], *, kid: str | None = None, key: Any = None) -> str:
    signer = key if key is not None else KEYS[algorithm][0]
    return jwt.encode(claims, signer, algorithm=algorithm, headers={"kid": kid or algorithm})


@pytest.fixture
async def verifier(tmp_path: Path) -> JwtVerifier:
    keys = []
    for name, (key, algorithm) in KEYS.items():
        public = algorithm.to_jwk(key.public_key())
        keys.append({**json.loads(public), "kid": name, "alg": name, "use": "sig"})
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}))
    settings = Jwt(jwks_file=str(path), audience="headworks", issuer="issuer")
    return JwtVerifier(settings, refused=Unauthenticated)


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_names_a_device(verifier: JwtVerifier, algorithm: str) -> None:
    who = verifier.identity(token(algorithm, CLAIMS))
    assert (who.tenant, who.name, who.kind) == ("t", "d", Kind.DEVICE)


async def test_a_token_may_name_a_gateway(verifier: JwtVerifier) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != "device"} | {"gateway": "g"}
    assert verifier.identity(token("ES256", claims)).kind is Kind.GATEWAY


@pytest.mark.parametrize(
    "wrong",
    [
        token("ES256", {**CLAIMS, "exp": 1}),
        token("ES256", {key: value for key, value in CLAIMS.items() if key != "exp"}),
        token("ES256", {**CLAIMS, "aud": "others"}),
        token("ES256", {**CLAIMS, "iss": "others"}),
        token("ES256", {key: value for key, value in CLAIMS.items() if key != "tenant"}),
        token("ES256", {**CLAIMS, "device": 7}),
        token("ES256", CLAIMS, kid="nobody"),
        token("ES256", CLAIMS, key=ec.generate_private_key(ec.SECP256R1())),
        jwt.encode(CLAIMS, "0" * 32, algorithm="HS256", headers={"kid": "ES256"}),
        jwt.encode(CLAIMS, "", algorithm="none", headers={"kid": "ES256"}),
        "not.a.token",
        "",
    ],
)
async def test_a_wrong_token_is_refused_and_not_repeated(verifier: JwtVerifier, wrong: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        verifier.identity(wrong)
    assert not wrong or wrong not in str(refused.value)
