"""A small HTTP server in a thread, for tests that do not await: an issuer's keys, a custom authorizer."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[Any], tuple[int, Any]]
"""Takes the JSON of a body, or None; returns a status and what becomes the JSON of the answer."""


class StandIn:
    """What it answers may be changed at any time; `asked` are the bodies that came."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def heard(self, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body) if body else None
        self.asked.append(asked)
        status, said = self.answer(asked)
        return status, json.dumps(said).encode()


@contextlib.contextmanager
def stand_in(answer: Answer) -> Iterator[StandIn]:
    """Run one on a free port."""
    made = StandIn(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = made.heard(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  # the name is http.server's

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
