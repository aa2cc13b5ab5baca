"""Endpoints in a TOML file of [[endpoints]], read again at each poll and taken whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Final

import msgspec

from routing.discovery.source import DiscoveryError, Found, found
from routing.gateway.routes_file import Endpoint
from runtime import settings_file
from runtime.settings_file import Section, SettingsError, Wrong

FILE_BYTES_MAX: Final = 1 << 20


class EndpointsFile(Section, frozen=True):
    """All that the file may say."""

    endpoints: list[Endpoint] = msgspec.field(default_factory=list)


class FileSource:
    """One file. Whoever writes it should rename a whole one into place; half a one is refused as not TOML."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def poll(self) -> Found:
        """Return what the file says; raises `DiscoveryError` when it is missing or wrong."""
        return await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Nothing is open."""

    def _read(self) -> Found:
        try:
            size = self._path.stat().st_size
            if size > FILE_BYTES_MAX:
                raise DiscoveryError(f"{self._path} has {size} bytes, of which {FILE_BYTES_MAX} are taken")
            content = settings_file.load(self._path, EndpointsFile, check=_check)
        except (OSError, SettingsError) as error:
            raise DiscoveryError(str(error)) from error
        revision = hashlib.blake2b(msgspec.json.encode(content), digest_size=8).hexdigest()
        return found(content.endpoints, revision)


def _check(content: EndpointsFile, wrong: Wrong) -> None:
    """Check nothing more: addresses are checked as those of every source are."""
    del content, wrong
