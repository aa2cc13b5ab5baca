"""AWS Private CA behind the interface `Issuer`.

The template takes no extension of the request, and subject and names come with the call (API passthrough).
What comes back is checked all the same: a certificate that names anybody else is not handed out.

AWS publishes its revocation list itself, up to half an hour later; the ingestion gateway follows the copy
that `tls.crl` names. Who must be out within a second is suspended as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime import clock
from services.device.issuer import Holder, Issued, IssuerError, issued

TEMPLATE: Final = "template/BlankEndEntityCertificate_APIPassthrough/V1"
CLIENT_AUTH: Final = {"ExtendedKeyUsageType": "CLIENT_AUTH"}
REASON: Final = "CESSATION_OF_OPERATION"
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 1.0
REVOKED: Final = frozenset({"RequestAlreadyProcessedException", "ResourceNotFoundException"})
"""What cannot be revoked any more, or never was issued."""
NOT_YET: Final = "RequestInProgressException"
RETRIABLE: Final = frozenset({"ThrottlingException", "RequestFailedException", "LimitExceededException"})


class AwsIssuer:
    """One private CA. `client` is an aiobotocore client of `acm-pca`; see `opened`."""

    def __init__(
        self, client: Any, *, ca_arn: str, signing_algorithm: str, trust_domain: str, deadline_s: float
    ) -> None:
        self._client = client
        self._ca_arn = ca_arn
        self._template_arn = f"{':'.join(ca_arn.split(':')[:2])}:acm-pca:::{TEMPLATE}"
        self._signing_algorithm = signing_algorithm
        self._trust_domain = trust_domain
        self._deadline_s = deadline_s

    async def sign(self, request: x509.CertificateSigningRequest, holder: Holder, days: int) -> Issued:
        """Ask for a certificate and wait until it is there."""
        uri = holder.uri(self._trust_domain)
        answer = await self._call(
            "issue_certificate",
            Csr=request.public_bytes(serialization.Encoding.PEM),
            SigningAlgorithm=self._signing_algorithm,
            TemplateArn=self._template_arn,
            Validity={"Type": "DAYS", "Value": days},
            ApiPassthrough={
                "Subject": {"Organization": holder.tenant, "CommonName": holder.name},
                "Extensions": {
                    "ExtendedKeyUsage": [CLIENT_AUTH],
                    "KeyUsage": {"DigitalSignature": True},
                    "SubjectAlternativeNames": [{"UniformResourceIdentifier": uri}],
                },
            },
        )
        found = await self._issued(answer["CertificateArn"])
        certificate = x509.load_pem_x509_certificate(found["Certificate"].encode())
        if certificate.public_key() != request.public_key() or _uris(certificate) != [uri]:
            raise IssuerError("the private CA has issued something else than was asked", retriable=False)
        return issued(certificate, found.get("CertificateChain", ""))

    async def revoke(self, serials: Sequence[str]) -> None:
        """Revoke one after the other; what is revoked already counts as done."""
        for serial in serials:
            await self._call(
                "revoke_certificate",
                done=REVOKED,
                CertificateSerial=_with_colons(serial),
                RevocationReason=REASON,
            )

    async def refresh(self) -> None:
        """Nothing: AWS keeps its revocation list fresh."""

    async def _issued(self, certificate_arn: str) -> dict[str, Any]:
        until_s, wait_s = clock.monotonic_s() + self._deadline_s, FIRST_WAIT_S
        while True:
            found = await self._call(
                "get_certificate", done=frozenset({NOT_YET}), CertificateArn=certificate_arn
            )
            if "Certificate" in found:
                return found
            if clock.monotonic_s() + wait_s > until_s:
                raise IssuerError("the private CA has not issued the certificate in time", retriable=True)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _call(
        self, operation: str, *, done: frozenset[str] = frozenset(), **arguments: Any
    ) -> dict[str, Any]:
        """Call an operation; an error code in `done` is an empty answer. Texts of AWS name no secrets."""
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await getattr(self._client, operation)(
                    CertificateAuthorityArn=self._ca_arn, **arguments
                )
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in done:
                return {}
            raise IssuerError(f"the private CA says {code}", retriable=code in RETRIABLE) from error
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise IssuerError(
                f"the private CA does not answer: {type(error).__name__}", retriable=True
            ) from error
        return dict(answer)


@contextlib.asynccontextmanager
async def opened(
    *,
    ca_arn: str,
    region: str,
    endpoint: str,
    signing_algorithm: str,
    trust_domain: str,
    deadline_s: float,
) -> AsyncIterator[AwsIssuer]:
    """Give an issuer with a client of its own; credentials come from the environment."""
    config = AioConfig(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=deadline_s,
        read_timeout=deadline_s,
    )
    async with get_session().create_client(
        "acm-pca", region_name=region, endpoint_url=endpoint or None, config=config
    ) as client:
        yield AwsIssuer(
            client,
            ca_arn=ca_arn,
            signing_algorithm=signing_algorithm,
            trust_domain=trust_domain,
            deadline_s=deadline_s,
        )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]


def _with_colons(serial: str) -> str:
    """Return a serial number as AWS writes it: bytes in hex with colons."""
    even = serial if len(serial) % 2 == 0 else f"0{serial}"
    return ":".join(even[place : place + 2] for place in range(0, len(even), 2))
