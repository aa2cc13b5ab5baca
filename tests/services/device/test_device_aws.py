"""AWS Private CA behind the same interface: against moto, and against answers that moto does not give.

moto does not know API passthrough and signs what the request says. So the tests put what we ask for into the
request too, and what comes back otherwise is refused, as it would be from AWS.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from cryptography import x509

from ingest.pki import signing_request
from routing.tenancy.identity import Kind
from services.device import aws
from services.device.aws import AwsIssuer
from services.device.issuer import Holder, IssuerError
from tests.support.device_service import signing_request as request_of
from tests.support.device_service import uris_of
from tests.support.kinesis_servers import moto

HOLDER = Holder(tenant="acme", kind=Kind.DEVICE, name="pump")
URI = "spiffe://example.org/tenant/acme/device/pump"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("moto")
    with moto(folder) as port:
        yield f"http://127.0.0.1:{port}"


def private_ca(endpoint: str) -> tuple[Any, str]:
    """Make a private CA as its owner does: create it, sign its own request, install that."""
    client = boto3.client(
        "acm-pca",
        endpoint_url=endpoint,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    configuration = {
        "KeyAlgorithm": "RSA_2048",
        "SigningAlgorithm": "SHA256WITHRSA",
        "Subject": {"CommonName": "Test CA"},
    }
    arn = client.create_certificate_authority(
        CertificateAuthorityConfiguration=configuration, CertificateAuthorityType="ROOT"
    )["CertificateAuthorityArn"]
    csr = client.get_certificate_authority_csr(CertificateAuthorityArn=arn)["Csr"]
    certificate = client.issue_certificate(
        CertificateAuthorityArn=arn,
        Csr=csr,
        SigningAlgorithm="SHA256WITHRSA",
        TemplateArn="arn:aws:acm-pca:::template/RootCACertificate/V1",
        Validity={"Type": "YEARS", "Value": 10},
    )["CertificateArn"]
    found = client.get_certificate(CertificateAuthorityArn=arn, CertificateArn=certificate)
    client.import_certificate_authority_certificate(
        CertificateAuthorityArn=arn, Certificate=found["Certificate"]
    )
    return client, arn


@pytest.fixture
async def issuer(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsIssuer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    _, arn = private_ca(wait_for(endpoint))
    async with aws.opened(
        ca_arn=arn,
        region="eu-central-1",
        endpoint=endpoint,
        signing_algorithm="SHA256WITHRSA",
        trust_domain="example.org",
        deadline_s=10.0,
    ) as opened:
        yield opened


def wait_for(endpoint: str) -> str:
    """Return the endpoint once the server answers."""

    for _ in range(400):
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()  # noqa: S310
        except OSError:
            time.sleep(0.05)
        else:
            return endpoint
    raise AssertionError("moto_server did not start")


async def test_a_certificate_is_issued_and_revoked(issuer: AwsIssuer) -> None:
    request = signing_request(request_of(uri=URI).encode())
    new = await issuer.sign(request, HOLDER, 30)
    assert uris_of(new.certificate) == [URI]
    certificate = x509.load_pem_x509_certificate(new.certificate.encode())
    assert certificate.public_key() == request.public_key()
    root = x509.load_pem_x509_certificate(new.chain.encode())
    certificate.verify_directly_issued_by(root)
    await issuer.revoke([new.serial])
    await issuer.refresh()


async def test_a_certificate_that_names_somebody_else_is_not_handed_out(issuer: AwsIssuer) -> None:
    request = signing_request(request_of(uri=URI.replace("pump", "valve")).encode())
    with pytest.raises(IssuerError, match="something else") as refused:
        await issuer.sign(request, HOLDER, 30)
    assert not refused.value.retriable
    with pytest.raises(IssuerError, match="something else"):
        await issuer.sign(signing_request(request_of().encode()), HOLDER, 30)


async def test_a_private_ca_that_is_not_there_is_no_reason_to_try_again(issuer: AwsIssuer) -> None:
    issuer._ca_arn = issuer._ca_arn[:-4] + "0000"
    with pytest.raises(IssuerError, match="ResourceNotFoundException") as refused:
        await issuer.sign(signing_request(request_of(uri=URI).encode()), HOLDER, 30)
    assert not refused.value.retriable


class Answers:
    """A client that gives the answers it was told, one after the other, and notes what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Any:
        async def call(**arguments: Any) -> Any:
            self.asked.append((operation, arguments))
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "secret"}}, "Operation")


def issuer_with(client: Answers) -> AwsIssuer:
    return AwsIssuer(
        client,
        ca_arn="arn:aws-cn:acm-pca:cn-north-1:1:certificate-authority/x",
        signing_algorithm="SHA256WITHECDSA",
        trust_domain="example.org",
        deadline_s=0.3,
    )


async def test_the_names_come_with_the_call_and_not_from_the_request() -> None:
    client = Answers({"CertificateArn": "a"}, error("RequestInProgressException"), error("AccessDenied"))
    with pytest.raises(IssuerError, match="AccessDenied") as refused:
        await issuer_with(client).sign(signing_request(request_of().encode()), HOLDER, 30)
    assert "secret" not in str(refused.value)
    operation, asked = client.asked[0]
    assert operation == "issue_certificate"
    passed = asked["ApiPassthrough"]
    assert passed["Subject"] == {"Organization": "acme", "CommonName": "pump"}
    assert passed["Extensions"]["SubjectAlternativeNames"] == [{"UniformResourceIdentifier": URI}]
    assert asked["TemplateArn"] == "arn:aws-cn:acm-pca:::template/BlankEndEntityCertificate_APIPassthrough/V1"
    assert asked["Validity"] == {"Type": "DAYS", "Value": 30}
    assert [each[0] for each in client.asked[1:]] == ["get_certificate"] * 2


async def test_a_certificate_that_does_not_come_in_time_may_be_asked_for_again() -> None:
    client = Answers({"CertificateArn": "a"}, *[error("RequestInProgressException")] * 20)
    with pytest.raises(IssuerError, match="in time") as refused:
        await issuer_with(client).sign(signing_request(request_of().encode()), HOLDER, 30)
    assert refused.value.retriable


async def test_what_is_revoked_already_counts_as_done() -> None:
    client = Answers(error("RequestAlreadyProcessedException"), {}, error("ThrottlingException"))
    with pytest.raises(IssuerError) as refused:
        await issuer_with(client).revoke(["abc", "0102", "1"])
    assert refused.value.retriable
    assert [asked["CertificateSerial"] for _, asked in client.asked] == ["0a:bc", "01:02", "01"]


async def test_an_endpoint_that_does_not_answer_may_later() -> None:
    client = Answers(EndpointConnectionError(endpoint_url="http://x"))
    with pytest.raises(IssuerError, match="does not answer") as refused:
        await issuer_with(client).revoke(["1"])
    assert refused.value.retriable
