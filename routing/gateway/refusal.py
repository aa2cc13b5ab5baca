"""Why a caller is not let in, beside being nobody (`routing.tenancy.identity.Unauthenticated`)."""

from __future__ import annotations


class AuthorizerDown(Exception):
    """A credential could not be checked now: 503. The text says why, and never repeats the credential."""


class Suspended(Exception):
    """The caller is known, and its tenant or device is suspended: 403."""
