"""TLS of listeners, and of those who call them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from routing.mesh.model.shape import FilePath, OneOf, PortNumber, Shape


class ListenerTlsAcmCertificate(Shape, frozen=True, kw_only=True):
    """A certificate that AWS Certificate Manager keeps."""

    certificate_arn: str


class ListenerTlsFileCertificate(Shape, frozen=True, kw_only=True):
    """A certificate in files beside the proxy, PEM."""

    certificate_chain: FilePath
    private_key: FilePath


class ListenerTlsSdsCertificate(Shape, frozen=True, kw_only=True):
    """A certificate that the proxy asks a Secret Discovery Service for."""

    secret_name: str


class ListenerTlsCertificate(OneOf, frozen=True, kw_only=True):
    """What a listener shows to who connects."""

    acm: ListenerTlsAcmCertificate | None = None
    file: ListenerTlsFileCertificate | None = None
    sds: ListenerTlsSdsCertificate | None = None


class SubjectAlternativeNameMatchers(Shape, frozen=True, kw_only=True):
    """The names of which the peer's certificate must have one."""

    exact: tuple[Annotated[str, Meta(min_length=1, max_length=254)], ...]


class SubjectAlternativeNames(Shape, frozen=True, kw_only=True):
    """How the names of the peer's certificate are compared."""

    match: SubjectAlternativeNameMatchers


class TlsValidationContextAcmTrust(Shape, frozen=True, kw_only=True):
    """Authorities that AWS Private CA keeps."""

    certificate_authority_arns: Annotated[tuple[str, ...], Meta(min_length=1, max_length=3)]


class TlsValidationContextFileTrust(Shape, frozen=True, kw_only=True):
    """Authorities in a file beside the proxy, PEM."""

    certificate_chain: FilePath


class TlsValidationContextSdsTrust(Shape, frozen=True, kw_only=True):
    """Authorities that the proxy asks a Secret Discovery Service for."""

    secret_name: str


class ListenerTlsValidationContextTrust(OneOf, frozen=True, kw_only=True):
    """Whom a listener trusts."""

    file: TlsValidationContextFileTrust | None = None
    sds: TlsValidationContextSdsTrust | None = None


class ListenerTlsValidationContext(Shape, frozen=True, kw_only=True):
    """What a listener asks of who connects: with it, TLS is mutual."""

    trust: ListenerTlsValidationContextTrust
    subject_alternative_names: SubjectAlternativeNames | None = None


class ListenerTls(Shape, frozen=True, kw_only=True):
    """TLS of a listener; PERMISSIVE takes plaintext too."""

    certificate: ListenerTlsCertificate
    mode: Literal["STRICT", "PERMISSIVE", "DISABLED"]
    validation: ListenerTlsValidationContext | None = None


class ClientTlsCertificate(OneOf, frozen=True, kw_only=True):
    """What a caller shows where TLS is mutual."""

    file: ListenerTlsFileCertificate | None = None
    sds: ListenerTlsSdsCertificate | None = None


class TlsValidationContextTrust(OneOf, frozen=True, kw_only=True):
    """Whom a caller trusts."""

    acm: TlsValidationContextAcmTrust | None = None
    file: TlsValidationContextFileTrust | None = None
    sds: TlsValidationContextSdsTrust | None = None


class TlsValidationContext(Shape, frozen=True, kw_only=True):
    """What a caller asks of whom it calls."""

    trust: TlsValidationContextTrust
    subject_alternative_names: SubjectAlternativeNames | None = None


class ClientPolicyTls(Shape, frozen=True, kw_only=True):
    """TLS of a caller, to the ports it names or to all."""

    validation: TlsValidationContext
    certificate: ClientTlsCertificate | None = None
    enforce: bool | None = None
    ports: tuple[PortNumber, ...] | None = None


class ClientPolicy(Shape, frozen=True, kw_only=True):
    """How a caller calls."""

    tls: ClientPolicyTls | None = None


class BackendDefaults(Shape, frozen=True, kw_only=True):
    """How a caller calls whoever has no policy of its own."""

    client_policy: ClientPolicy | None = None
