"""Signs passports as the API gateway does, for tests of the services behind it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Passports:
    """A key of passports, of which the public part is at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = Ed25519PrivateKey.generate()
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path.write_bytes(public)

    def passport(self, audience: str, **claims: Any) -> str:
        """Return a passport; a claim that is None is left out."""
        usual = {
            "iss": "headworks-api",
            "aud": audience,
            "sub": "tester",
            "tenant": "",
            "scopes": "",
            "device": "",
            "credential": "api_key",
            "fingerprint": "f00",
            "exp": int(time.time()) + 120,  # noqa: TID251  # a real token
        }
        found = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        encoder = jwt.PyJWS()
        payload = json.dumps(found).encode()
        return encoder.encode(payload, self._key, algorithm="EdDSA")

    def headers(self, audience: str, **claims: Any) -> dict[str, str]:
        """Return the header of a request that carries a passport."""
        return {"X-Headworks-Identity": self.passport(audience, **claims)}
