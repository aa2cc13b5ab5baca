"""What the authority of a mesh issues, and when it is renewed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from routing.xds.issuer import BACKDATED_S, BadAuthority, Issuer, IssuerFiles
from runtime import clock

NODE = "mesh/shop/virtualNode/cart"


def files(folder: Path, authority: trustme.CA) -> IssuerFiles:
    made = IssuerFiles(folder / "ca.pem", folder / "ca.key")
    made.certificate.write_bytes(authority.cert_pem.bytes())
    made.key.write_bytes(authority.private_key_pem.bytes())
    made.key.chmod(0o600)
    return made


def issuer(found: IssuerFiles, now_s: float, ttl_s: float = 3600, random: float = 0.5) -> Issuer:
    return Issuer(
        found, trust_domain="shop.example", ttl_s=ttl_s, unix_s=lambda: now_s, random=lambda: random
    )


def test_a_certificate_has_one_identity_and_no_more_than_it_needs(tmp_path: Path) -> None:
    authority, now_s = trustme.CA(), clock.unix_s()
    own, bundle = issuer(files(tmp_path, authority), now_s).secrets(NODE)
    assert own.name == f"spiffe://shop.example/{NODE}"
    assert bundle.name == "spiffe://shop.example"
    assert bundle.validation_context.trusted_ca.inline_bytes == authority.cert_pem.bytes()
    [leaf] = x509.load_pem_x509_certificates(own.tls_certificate.certificate_chain.inline_bytes)
    key = serialization.load_pem_private_key(own.tls_certificate.private_key.inline_bytes, None)
    assert key.public_key() == leaf.public_key()
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [each.value for each in names.value] == [own.name]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert now_s - leaf.not_valid_before_utc.timestamp() == pytest.approx(BACKDATED_S, abs=1)
    assert leaf.not_valid_after_utc.timestamp() - now_s == pytest.approx(3600, abs=1)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.cert_pem.bytes()))


def test_an_intermediate_sends_its_chain_and_trusts_the_root(tmp_path: Path) -> None:
    root = trustme.CA()
    middle = root.create_child_ca()
    found = files(tmp_path, middle)
    with pytest.raises(BadAuthority, match="does not have the authority"):
        issuer(IssuerFiles(found.certificate, found.key, _written(tmp_path, trustme.CA())), clock.unix_s())
    made = issuer(IssuerFiles(found.certificate, found.key, _written(tmp_path, root)), clock.unix_s())
    own, bundle = made.secrets(NODE)
    chain = x509.load_pem_x509_certificates(own.tls_certificate.certificate_chain.inline_bytes)
    assert len(chain) == 2
    assert bundle.validation_context.trusted_ca.inline_bytes == root.cert_pem.bytes()


def _written(folder: Path, authority: trustme.CA) -> Path:
    path = folder / "bundle.pem"
    path.write_bytes(authority.cert_pem.bytes())
    return path


def test_each_proxy_has_a_key_of_its_own(tmp_path: Path) -> None:
    made = issuer(files(tmp_path, trustme.CA()), clock.unix_s())
    first, second = (made.secrets(NODE)[0].tls_certificate.private_key.inline_bytes for _ in range(2))
    assert first != second


def test_a_certificate_ends_with_its_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    ends = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).not_valid_after_utc
    made = issuer(files(tmp_path, authority), ends.timestamp() - 60)
    [leaf] = x509.load_pem_x509_certificates(
        made.secrets(NODE)[0].tls_certificate.certificate_chain.inline_bytes
    )
    assert leaf.not_valid_after_utc == ends
    assert made.renewed_after_s() < 60


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> IssuerFiles:
    return files(tmp_path_factory.mktemp("issuer"), trustme.CA())


@given(ttl_s=st.floats(1, 86_400), random=st.floats(0, 1))
def test_it_is_renewed_between_half_and_three_quarters_of_its_time(
    found: IssuerFiles, ttl_s: float, random: float
) -> None:
    after_s = issuer(found, clock.unix_s(), ttl_s, random).renewed_after_s()
    assert 0.5 * ttl_s <= after_s <= 0.75 * ttl_s + 0.1


def test_a_leaf_is_no_authority(tmp_path: Path) -> None:
    leaf = trustme.CA().issue_cert("cart.local")
    made = IssuerFiles(tmp_path / "leaf.pem", tmp_path / "leaf.key")
    made.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    made.key.write_bytes(leaf.private_key_pem.bytes())
    made.key.chmod(0o600)
    with pytest.raises(BadAuthority, match="is not the certificate of an authority"):
        issuer(made, clock.unix_s())


def test_an_authority_that_has_ended_issues_nothing(tmp_path: Path) -> None:
    authority = trustme.CA()
    ends_s = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).not_valid_after_utc.timestamp()
    now_s = [ends_s - 1]
    found = files(tmp_path, authority)
    made = Issuer(found, trust_domain="a", ttl_s=9, unix_s=lambda: now_s[0], random=lambda: 0.5)
    assert made.secrets(NODE)
    now_s[0] = ends_s + 1
    with pytest.raises(BadAuthority, match="has ended: replace it"):
        made.secrets(NODE)
    with pytest.raises(BadAuthority, match="has ended"):
        issuer(found, ends_s + 1)
