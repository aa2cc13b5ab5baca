"""Asks a server whether it is well: an answer of 2xx to a GET, or a connection that is taken."""

from __future__ import annotations

import asyncio
from typing import Final, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

SCHEMES: Final = ("http", "tcp")


class BadTarget(Exception):
    """What is named cannot be checked; the text says why."""


class Target(msgspec.Struct, frozen=True):
    """What is asked. `url` is for HTTP."""

    scheme: Literal["http", "tcp"]
    host: str
    port: int
    url: str


def target_of(text: str) -> Target:
    """Return a target from http://HOST[:PORT]/PATH or tcp://HOST:PORT; raises BadTarget."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadTarget(f"{text}: {error}") from error
    if parts.hostname and not parts.username:
        if parts.scheme == "http":
            return Target("http", parts.hostname, port or 80, text)
        if parts.scheme == "tcp" and port and not parts.path.strip("/"):
            return Target("tcp", parts.hostname, port, "")
    raise BadTarget(f"{text} is not http://HOST[:PORT]/PATH or tcp://HOST:PORT")


async def why_not(target: Target, *, deadline_s: float) -> str:
    """Return why a server is not well, or nothing where it is."""
    try:
        async with asyncio.timeout(deadline_s):
            if target.scheme == "tcp":
                _, writer = await asyncio.open_connection(target.host, target.port)
                writer.close()
                return ""
            async with (
                aiohttp.ClientSession() as session,
                session.get(target.url, allow_redirects=False) as answer,
            ):
                return "" if 200 <= answer.status < 300 else f"status {answer.status}"
    except TimeoutError:
        return f"no answer in {deadline_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        return str(error) or type(error).__name__
