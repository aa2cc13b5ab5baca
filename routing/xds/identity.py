"""Who may ask for the configuration of a node: whoever's certificate names it, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

SPIFFE: Final = "spiffe://"


class Identity(msgspec.Struct, frozen=True):
    """What a client certificate says: SPIFFE ids, and the common names of its subject."""

    uris: tuple[str, ...]
    names: tuple[str, ...]


def identity_of(context: Mapping[str, Sequence[bytes]]) -> Identity:
    """Return the identity in a gRPC authentication context."""
    alternative = _texts(context.get("x509_subject_alternative_name", ()))
    uris = dict.fromkeys([*_texts(context.get("peer_spiffe_id", ())), *alternative])
    return Identity(
        tuple(each for each in uris if each.startswith(SPIFFE)),
        tuple(_texts(context.get("x509_common_name", ()))),
    )


def may_ask(identity: Identity, node: str, trust_domain: str) -> bool:
    """Return whether a certificate names a node.

    A SPIFFE id is `spiffe://TRUST_DOMAIN/mesh/MESH/virtualNode/NAME`, and there is one (SPIFFE X509-SVID, 2).
    A certificate without one has the node in its subject; an empty trust domain takes no SPIFFE id.
    """
    if identity.uris:
        return bool(trust_domain) and identity.uris == (f"{SPIFFE}{trust_domain}/{node}",)
    return identity.names == (node,)


def _texts(values: Sequence[bytes]) -> list[str]:
    return [each.decode(errors="replace") for each in values]
