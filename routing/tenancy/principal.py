"""Who calls the API, and what for: a tenant's back end or person, one of its devices, or an operator."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from routing.tenancy.identity import Credential

EVERY_TENANT: Final = "*"
"""The tenant of an operator of the platform, who may act for each."""
SCOPE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}:[a-z][a-z0-9-]{0,31}")
"""A scope is `resource:action`, such as `devices:read`; holding `resource:write` does not imply `read`."""
SCOPES_MAX: Final = 64


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A proven caller of the API, immutable for a request.

    `fingerprint` names the credential itself (key id, JWT `jti`, certificate `issuer-hash:serial`); `plan` is
    the usage plan of the credential, or empty for the tenant's. `expires_s` is Unix time in seconds. `device`
    is the device that the caller is, or empty.
    """

    tenant: str
    name: str
    scopes: frozenset[str]
    credential: Credential
    fingerprint: str = ""
    plan: str = ""
    device: str = ""
    expires_s: float | None = None

    def may_act_for(self, tenant: str) -> bool:
        """Return whether this caller may touch what belongs to `tenant`."""
        return self.tenant in {tenant, EVERY_TENANT}

    def holds(self, scopes: frozenset[str]) -> bool:
        """Return whether this caller has every one of `scopes`."""
        return scopes <= self.scopes
