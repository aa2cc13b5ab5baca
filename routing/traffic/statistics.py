"""Where statistics are read: the admin ports of callers' proxies, or a Prometheus that scrapes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from routing.traffic.counts import Clusters, Reading
from routing.traffic.exposition import Unreadable, admin_filter, clusters_in, query, reading_in
from routing.traffic.sides import Sides

BODY_BYTES_MAX: Final = 64 << 20
CHUNK_BYTES: Final = 1 << 16
ADMIN_PATH: Final = "/stats/prometheus"
DEADLINE_S: Final = 5.0
Say = Callable[[str], None]


class Statistics(Protocol):
    """Something that knows what proxies counted."""

    async def read(self, say: Say) -> Reading:
        """Return what can be read now, and say what cannot."""

    def asked(self) -> list[str]:
        """Return what is asked, and of whom."""


class Unwatched:
    """Nothing is read."""

    async def read(self, say: Say) -> Reading:
        """Return nothing."""
        del say
        return {}

    def asked(self) -> list[str]:
        """Return nothing."""
        return []


class Admins:
    """Admin ports of Envoys, each HOST:PORT."""

    def __init__(self, session: aiohttp.ClientSession, addresses: Sequence[str], sides: Sides) -> None:
        self._session = session
        self._addresses = addresses
        self._filter = admin_filter(sides)

    async def read(self, say: Say) -> Reading:
        """Ask all of them at once."""
        found = await asyncio.gather(*[self._clusters(address, say) for address in self._addresses])
        return {
            address: each for address, each in zip(self._addresses, found, strict=True) if each is not None
        }

    def asked(self) -> list[str]:
        """Return the addresses that are asked for."""
        return [f"http://{each}{ADMIN_PATH}?filter={self._filter}" for each in self._addresses]

    async def _clusters(self, address: str, say: Say) -> Clusters | None:
        try:
            body = await _got(self._session, f"http://{address}{ADMIN_PATH}", {"filter": self._filter})
            return clusters_in(body.decode(errors="replace"))
        except Unreadable as error:
            say(f"{address}: {error}")
            return None


class Prometheus:
    """The HTTP API of a Prometheus at a URL, which may have a user and a password."""

    def __init__(self, session: aiohttp.ClientSession, base: str, sides: Sides) -> None:
        self._session = session
        self._url = f"{base.rstrip('/')}/api/v1/query"
        self._shown = urlsplit(base).hostname or ""
        self._query = query(sides)

    async def read(self, say: Say) -> Reading:
        """Ask for the counters as they were scraped last."""
        try:
            return reading_in(await _got(self._session, self._url, {"query": self._query}))
        except Unreadable as error:
            say(f"Prometheus at {self._shown}: {error}")
            return {}

    def asked(self) -> list[str]:
        """Return the query."""
        return [f"Prometheus at {self._shown}: {self._query}"]


async def _got(session: aiohttp.ClientSession, url: str, params: dict[str, str]) -> bytes:
    """Return the body of an answer with the status 200; raises Unreadable."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            session.get(url, params=params, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise Unreadable(f"it answers {answer.status}")
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise Unreadable(f"its answer is longer than {BODY_BYTES_MAX} bytes")
    except TimeoutError as error:
        raise Unreadable(f"no answer in {DEADLINE_S:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unreadable(str(error) or type(error).__name__) from error
    return bytes(body)
