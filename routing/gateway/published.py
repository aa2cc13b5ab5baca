"""What the gateway publishes of its routes: for each version the OpenAPI document, and a page to read.

Both are made when routes are loaded, so that a document that cannot be published keeps the last good routes.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

import msgspec
from aiohttp import web

from routing.gateway import openapi
from routing.gateway.documents import Documents
from routing.gateway.pages import page
from routing.gateway.routes_file import Routes
from runtime.problem import problem

FRESH: Final = "no-cache"
"""Kept by callers, but asked for again with its ETag: routes change without notice."""


class Asking(Protocol):
    """What is needed of an exchange."""

    @property
    def request(self) -> web.BaseRequest:
        """Return the request."""

    @property
    def version(self) -> str:
        """Return the version of the API that it is for."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be published, whole."""

    body: bytes
    etag: str
    content_type: str
    policy: str = ""


class Published:
    """The documents and pages of all versions; replaced as a whole when routes are."""

    def __init__(self, routes: Routes, documents: Documents, *, server: str, title: str) -> None:
        """Make all; raises `DocumentError`."""
        style, script = page.asset("docs.css"), page.asset("docs.js")
        self._documents: dict[str, Text] = {}
        self._pages: dict[str, Text] = {}
        for version in openapi.versions(routes):
            document = openapi.published(routes, documents, version, server=server, title=title)
            self._documents[version] = _text(msgspec.json.encode(document), "application/json")
            self._pages[version] = _text(
                page.render(document, style=style, script=script, document_url="openapi.json").encode(),
                "text/html",
                page.policy(style, script),
            )

    async def openapi(self, exchange: Asking) -> web.Response:
        """Answer `GET /{version}/openapi.json`."""
        return _answer(exchange, self._documents.get(exchange.version))

    async def docs(self, exchange: Asking) -> web.Response:
        """Answer `GET /{version}/docs`."""
        return _answer(exchange, self._pages.get(exchange.version))


def _text(body: bytes, content_type: str, policy: str = "") -> Text:
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Text(body=body, etag=f'"{digest}"', content_type=content_type, policy=policy)


def _answer(exchange: Asking, text: Text | None) -> web.Response:
    if text is None:
        return problem(404, "not-found", "there is no such version")
    headers = {"ETag": text.etag, "Cache-Control": FRESH, "X-Content-Type-Options": "nosniff"}
    if text.policy:
        headers |= {"Content-Security-Policy": text.policy, "Referrer-Policy": "no-referrer"}
    if text.etag in exchange.request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return web.Response(body=text.body, content_type=text.content_type, charset="utf-8", headers=headers)
