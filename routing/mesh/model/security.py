"""Whose word services take: SPIFFE certificates on every connection, and callers that are expected."""

from __future__ import annotations

from typing import Literal

from routing.mesh.model.shape import Shape


class Security(Shape, frozen=True, kw_only=True):
    """How far a mesh has come on the way to mutual TLS everywhere.

    OFFERED: listeners take mutual TLS beside plaintext. USED: callers use it too, and who would be refused is
    counted. STRICT: listeners take nothing else, and of their callers only those whose backends lead to them.
    """

    mutual_tls: Literal["OFFERED", "USED", "STRICT"]
