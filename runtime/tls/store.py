"""Holds the set of certificates that is in use, and swaps it for a new one when files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Literal

from runtime import clock
from runtime.tls.material import TlsFiles, TlsMaterial, TlsMaterialError, load, signature

Reloaded = Callable[[TlsMaterial | None, str | None], None]
"""Called with the new set, or with None and what was wrong."""


class TlsStore:
    """The current set. A bad set is reported and the old one stays."""

    def __init__(self, files: TlsFiles, *, node_secret: bytes, reloaded: Reloaded) -> None:
        self._files = files
        self._node_secret = node_secret
        self._reloaded = reloaded
        self.current = load(files, node_secret=node_secret, now_s=clock.unix_s())
        self._tried = self.current.signature

    def context(self, *, mutual: bool, protocol: str) -> ssl.SSLContext:
        """Return the context for new connections."""
        return self.current.contexts[mutual, protocol]

    def http(self, kind: Literal["off", "server", "optional", "mutual"]) -> ssl.SSLContext:
        """Return the context for new connections of HTTP, by what is asked of its clients."""
        if kind != "optional":
            return self.current.contexts[kind == "mutual", "http"]
        assert self.current.optional is not None
        return self.current.optional

    def poll(self, *, force: bool = False) -> None:
        """Reload the set if a file has changed, or if told to."""
        seen = signature(self._files)
        if seen == self._tried and not force:
            return
        self._tried = seen
        try:
            material = load(self._files, node_secret=self._node_secret, now_s=clock.unix_s())
        except TlsMaterialError as error:
            self._reloaded(None, str(error))
            return
        self.current = material
        self._reloaded(material, None)
