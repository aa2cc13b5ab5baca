"""Certificates: issued for keys that their holders have, in our names, and revoked for good."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from ingest.pki import DevelopmentCa, PkiError, signing_request
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Kind, Unauthenticated
from routing.tenancy.registry import Verdict
from services.device import claims
from services.device.store.claims import ClaimRow
from services.web.refusal import Refused
from tests.support.device_service import Service, device_service, uris_of
from tests.support.device_service import signing_request as request_of

DOMAIN = "spiffe://headworks.local"
GOOD_KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048": rsa.generate_private_key(65537, 2048),
}
BAD_KEYS = {
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "RSA-1024": rsa.generate_private_key(65537, 1024),  # noqa: S505  # to be refused
    "DSA": dsa.generate_private_key(2048),
}


@pytest.mark.parametrize("name", GOOD_KEYS)
def test_keys_that_are_strong_are_taken(name: str) -> None:
    signing_request(request_of(GOOD_KEYS[name]).encode())


def with_edwards_key(key: Any) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, None).public_bytes(serialization.Encoding.PEM)


def test_an_ed25519_key_is_taken_and_an_ed448_key_is_not() -> None:
    signing_request(with_edwards_key(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(PkiError, match="P-256"):
        signing_request(with_edwards_key(ed448.Ed448PrivateKey.generate()))


@pytest.mark.parametrize("name", BAD_KEYS)
def test_keys_that_are_weak_or_odd_are_refused(name: str) -> None:
    with pytest.raises(PkiError, match="the key must be"):
        signing_request(request_of(BAD_KEYS[name]).encode())


def test_a_request_that_is_not_signed_with_its_own_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = bytearray(x509.load_pem_x509_csr(request_of(key).encode()).public_bytes(serialization.Encoding.DER))
    public = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    place = bytes(der).index(public)
    der[place : place + len(public)] = other.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    stolen = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(PkiError, match="not signed with its own key"):
        signing_request(stolen)


@pytest.mark.parametrize("content", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\n\n", "A" * 16_385])
def test_what_is_no_request_is_refused(content: str) -> None:
    with pytest.raises(PkiError):
        signing_request(content.encode())


def test_a_request_signed_with_an_old_digest_is_refused() -> None:
    old = request_of(GOOD_KEYS["RSA-2048"], digest=hashes.SHA224())
    with pytest.raises(PkiError, match="sha224"):
        signing_request(old.encode())


def test_revocations_that_come_at_once_are_all_kept(tmp_path: Path) -> None:
    DevelopmentCa.create(tmp_path)
    each = [
        threading.Thread(target=DevelopmentCa(tmp_path).revoke_serials, args=([n],)) for n in range(1, 25)
    ]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    assert DevelopmentCa(tmp_path).revoked() == list(range(1, 25))


async def device(service: Service, name: str = "pump") -> None:
    assert (await service.of_acme("POST", "/devices", {"device": name})).status == 201


async def test_a_certificate_names_the_device_whatever_its_request_says(service: Service) -> None:
    await device(service)
    asked = request_of(name="root", uri=f"{DOMAIN}/tenant/other/gateway/all")
    made = await service.of_acme("POST", "/devices/pump/certificates", {"csr": asked, "days": 10})
    assert made.status == 201
    assert uris_of(made.body["certificate"]) == [f"{DOMAIN}/tenant/acme/device/pump"]
    certificate = x509.load_pem_x509_certificate(made.body["certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=pump,O=acme"
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(made.body["chain"].encode()))
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 10
    assert f"{certificate.serial_number:x}" == made.body["serial"]
    [listed] = (await service.of_acme("GET", "/devices/pump/certificates")).body["items"]
    assert (listed["serial"], listed["status"]) == (made.body["serial"], "active")
    assert listed["fingerprint"] == certificate.fingerprint(hashes.SHA256()).hex()


async def test_a_request_that_is_wrong_is_refused(service: Service) -> None:
    await device(service)
    path = "/devices/pump/certificates"
    refused = await service.of_acme("POST", path, {"csr": request_of(BAD_KEYS["RSA-1024"])})
    assert (refused.status, refused.slug) == (422, "invalid-signing-request")
    assert (await service.of_acme("POST", path, {"csr": "\u00e9"})).slug == "invalid-signing-request"
    assert (await service.of_acme("POST", path, {})).status == 400
    assert (await service.of_acme("POST", path, {"csr": "x", "subject": "y"})).status == 400
    assert (await service.of_acme("POST", "/devices/none/certificates", {"csr": request_of()})).status == 404
    await device(service, "a:b")
    refused = await service.of_acme("POST", "/devices/a:b/certificates", {"csr": request_of()})
    assert (refused.status, refused.slug) == (422, "not-issuable")


async def test_a_certificate_that_is_revoked_is_on_the_list_when_the_answer_comes(service: Service) -> None:
    await device(service)
    serials = []
    for _ in range(3):
        made = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
        serials.append(made.body["serial"])
    answers = await asyncio.gather(
        *(service.of_acme("DELETE", f"/devices/pump/certificates/{serial}") for serial in serials[:2])
    )
    assert [answer.status for answer in answers] == [204, 204]
    assert sorted(service.ca.revoked()) == sorted(int(serial, 16) for serial in serials[:2])
    listed = (await service.of_acme("GET", "/devices/pump/certificates")).body["items"]
    assert {each["serial"]: each["status"] for each in listed} == dict(
        zip(serials, ("revoked", "revoked", "active"), strict=True)
    )
    assert (await service.of_acme("DELETE", "/devices/pump/certificates/abc")).status == 404
    await device(service, "valve")
    other = await service.of_acme("DELETE", f"/devices/valve/certificates/{serials[2]}")
    assert other.status == 404
    assert (await service.of_acme("DELETE", "/devices/pump")).status == 204
    assert len(service.ca.revoked()) == 3


async def test_a_certificate_is_rotated_with_overlap(service: Service) -> None:
    await device(service)
    first = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
    path = f"/devices/pump/certificates/{first.body['serial']}/rotate"
    second = await service.of_acme("POST", path, {"csr": request_of(), "overlap_s": 0.2}, device="pump")
    assert second.status == 201
    listed = (await service.of_acme("GET", "/devices/pump/certificates")).body["items"]
    assert {each["status"] for each in listed} == {"active", "replaced"}
    assert service.ca.revoked() == []
    again = await service.of_acme("POST", path, {"csr": request_of()})
    assert again.slug == "not-current"
    async with asyncio.timeout(10):
        while service.ca.revoked() != [int(first.body["serial"], 16)]:
            await asyncio.sleep(0.05)
    path = f"/devices/pump/certificates/{second.body['serial']}/rotate"
    third = await service.of_acme("POST", path, {"csr": request_of(), "overlap_s": 0})
    assert int(second.body["serial"], 16) in service.ca.revoked(), "without overlap it is at once"
    assert third.status == 201


async def test_what_was_to_be_revoked_before_a_restart_is_revoked_after_it(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node") as service:
        await device(service)
        made = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
        ca = service.ca
        crl = ca.crl_path
        crl.rename(crl.with_suffix(".away"))
        crl.mkdir()  # so that the list cannot be written
        refused = await service.of_acme("DELETE", f"/devices/pump/certificates/{made.body['serial']}")
        assert (refused.status, refused.slug) == (503, "issuer-unavailable")
        assert "Retry-After" in refused.headers
        [listed] = (await service.of_acme("GET", "/devices/pump/certificates")).body["items"]
        assert listed["status"] == "replaced"
    crl.rmdir()
    crl.with_suffix(".away").rename(crl)
    async with device_service(tmp_path / "node", ca=ca), asyncio.timeout(10):
        while ca.revoked() != [int(made.body["serial"], 16)]:
            await asyncio.sleep(0.05)


async def test_a_device_has_as_many_certificates_as_it_may(tmp_path: Path) -> None:
    async with device_service(tmp_path / "node", "device.certificates_max=1") as service:
        await device(service)
        made = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
        refused = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
        assert (refused.status, refused.slug) == (409, "too-many-certificates")
        await service.of_acme("DELETE", f"/devices/pump/certificates/{made.body['serial']}")
        made = await service.of_acme("POST", "/devices/pump/certificates", {"csr": request_of()})
        assert made.status == 201


# Provisioning by claim.


async def claim(service: Service, **options: Any) -> dict[str, Any]:
    made = await service.of_acme("POST", "/claims", options)
    assert made.status == 201, made
    return dict(made.body)


async def provision(service: Service, device: str, token: str = "", **options: Any) -> Any:
    body = {"csr": request_of(), "device": device, **({"token": token} if token else {})}
    return await service.call("POST", "/v1/provision", body, **{"tenant": "", "scopes": "", **options})


async def test_a_token_provisions_a_device_once(service: Service) -> None:
    await service.of_acme("POST", "/groups", {"group": "roof"})
    token = (await claim(service, devices="pump-*", group="roof"))["token"]
    assert (await provision(service, "valve", token)).slug == "claim-for-others"
    made = await provision(service, "pump-1", token)
    assert (made.status, made.body["tenant"], made.body["device"]) == (201, "acme", "pump-1")
    assert uris_of(made.body["certificate"]) == [f"{DOMAIN}/tenant/acme/device/pump-1"]
    assert service.registry.judge("acme", "pump-1", registered_only=True) is Verdict.ADMITTED
    assert (await service.of_acme("GET", "/devices/pump-1")).body["groups"] == ["roof"]
    assert (await provision(service, "pump-2", token)).slug == "claim-used"
    [entry] = (await service.of_acme("GET", "/audit?device=pump-1")).body["items"]
    assert entry["action"] == "device.provision"
    assert entry["actor"].startswith("claim/")
    [shown] = (await service.of_acme("GET", "/claims")).body["items"]
    assert (shown["kind"], shown["uses"]) == ("token", 1)
    stored = (service.folder / "device.db").read_bytes() + (service.folder / "device.db-wal").read_bytes()
    assert token.rpartition("_")[2].encode() not in stored


async def test_a_claim_cannot_take_the_place_of_a_device(service: Service) -> None:
    token = (await claim(service, uses_max=10))["token"]
    made = await provision(service, "pump", token)
    assert (await provision(service, "pump", token)).slug == "already-provisioned"
    await service.of_acme("DELETE", f"/devices/pump/certificates/{made.body['serial']}")
    assert (await provision(service, "pump", token)).status == 201, "its owner has said so"
    await service.of_acme("POST", "/devices", {"device": "known"})
    assert (await provision(service, "known", token)).status == 201, "a device that has none yet"
    await service.of_acme("POST", "/devices", {"device": "bad"})
    await service.of_acme("POST", "/devices/bad/suspend")
    assert (await provision(service, "bad", token)).slug == "suspended"


async def test_one_use_is_for_one_device(service: Service) -> None:
    token = (await claim(service, uses_max=3))["token"]
    made = await asyncio.gather(*(provision(service, f"d{number}", token) for number in range(8)))
    assert sorted(answer.status for answer in made) == [201] * 3 + [403] * 5
    token = (await claim(service, uses_max=8))["token"]
    made = await asyncio.gather(*(provision(service, "same", token) for _ in range(8)))
    assert sorted(answer.status for answer in made) == [201] + [409] * 7


async def test_a_use_that_leads_to_nothing_is_given_back(service: Service) -> None:
    token = (await claim(service))["token"]
    body = {"csr": "nonsense", "device": "pump", "token": token}
    assert (await service.call("POST", "/v1/provision", body)).slug == "invalid-signing-request"
    assert (await provision(service, "pump", token)).status == 201


async def test_a_claim_ends(service: Service) -> None:
    made = await claim(service, uses_max=5)
    assert (await service.of_acme("DELETE", f"/claims/{made['claim']}")).status == 204
    assert (await provision(service, "pump", made["token"])).slug == "claim-revoked"
    assert (await service.of_acme("DELETE", "/claims/0000000000000000")).status == 404


@pytest.mark.parametrize(
    ("change", "device", "slug"),
    [
        ({}, "pump-1", None),
        ({}, "pump", "claim-for-others"),
        ({"devices": "p?m*-*"}, "pump-1", None),
        ({"revoked_s": 1.0}, "pump-1", "claim-revoked"),
        ({"expires_s": 50.0}, "pump-1", "claim-expired"),
        ({"uses": 2}, "pump-1", "claim-used"),
    ],
)
def test_a_claim_is_for_some_devices_some_times_and_some_time(
    change: dict[str, Any], device: str, slug: str | None
) -> None:
    row = ClaimRow(
        id="c",
        tenant="t",
        hash=None,
        devices="pump-*",
        into_group="",
        uses_max=2,
        uses=1,
        created_s=0.0,
        expires_s=100.0,
    )
    row = msgspec.structs.replace(row, **change)
    if slug is None:
        claims.refuse_unless_usable(row, device, 50.0)
        return
    with pytest.raises(Refused) as refused:
        claims.refuse_unless_usable(row, device, 50.0)
    assert refused.value.slug == slug


async def test_wrong_tokens_are_all_the_same_and_are_paced(tmp_path: Path) -> None:
    async with device_service(
        tmp_path / "node", "device.claims_burst=5", "device.wrong_claims_per_s=0.01"
    ) as service:
        right = (await claim(service, uses_max=5))["token"]
        wrongs = [right[:-1] + ("0" if right[-1] != "0" else "1"), "hwc_0", "x", right.upper(), f"{right}0"]
        for wrong in wrongs:
            answer = await provision(service, "pump", wrong)
            assert (answer.status, answer.slug) == (401, "wrong-claim")
        answer = await provision(service, "pump", right)
        assert (answer.status, answer.slug) == (429, "too-many-claims")
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await provision(service, "pump")).slug == "wrong-claim"


async def test_a_claim_certificate_provisions_and_does_nothing_else(service: Service) -> None:
    made = await claim(service, csr=request_of(), uses_max=2)
    assert "token" not in made
    uri = f"{DOMAIN}/tenant/acme/claim/{made['claim']}"
    assert uris_of(made["certificate"]) == [uri]
    names = {"subjectAltName": (("URI", uri),), "serialNumber": "1"}
    with pytest.raises(Unauthenticated, match="provisioning only"):
        CertificateNames("headworks.local").identity(names)
    identity = CertificateNames("headworks.local", claims=True).identity(names)
    assert identity.kind is Kind.CLAIM
    assert not identity.may_publish_for("acme", identity.name)
    shown = {"tenant": "acme", "sub": made["claim"], "scopes": "claims:provision"}
    assert (await provision(service, "pump", **shown)).status == 201
    assert (await provision(service, "valve", **{**shown, "scopes": ""})).slug == "wrong-claim"
    assert (await provision(service, "valve", **{**shown, "tenant": "other"})).slug == "wrong-claim"
    assert (await provision(service, "valve", **{**shown, "sub": "else"})).slug == "wrong-claim"
    token = await claim(service)
    assert (await provision(service, "valve", **{**shown, "sub": token["claim"]})).slug == "wrong-claim"
    await service.of_acme("DELETE", f"/claims/{made['claim']}")
    assert len(service.ca.revoked()) == 1
    assert (await provision(service, "valve", **shown)).slug == "claim-revoked"
