"""AWS Lambda as an upstream: events and results as they are written down, and a server that speaks Invoke."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from routing.gateway.routes_file import Breaking, Retries, Upstream
from routing.upstream.call import Call, Reason, UpstreamError
from routing.upstream.lambda_function import event_of, result_of
from tests.support.upstream_servers import call_of, count, running

QUICK = Retries(attempts_max=3, try_timeout_s=0.3, backoff_base_s=0.001, backoff_max_s=0.01)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def asked(
    headers: CIMultiDict[str] | None = None, *, method: str = "GET", target: str = "/", body: bytes = b""
) -> Call:
    return Call(
        method=method,
        target=target,
        headers=headers or CIMultiDict(),
        body=body,
        idempotent=True,
        timeout_s=1,
    )


def event(*arguments: Any, **others: Any) -> dict[str, Any]:
    return event_of(asked(*arguments, **others), now_s=1_764_000_000.25, request_id="r-1")


def test_an_event_is_of_version_2_of_the_payload_format() -> None:
    headers = CIMultiDict(
        [
            ("Accept", "text/plain"),
            ("Accept", "text/html"),
            ("User-Agent", "pump/1"),
            ("X-Forwarded-For", "198.51.100.7, 10.0.0.1"),
            ("X-Forwarded-Host", "api.example"),
        ]
    )
    made = event(headers, method="PUT", target="/a%2Fb/c?x=1&y=%20&x=2&z=")
    assert (made["version"], made["routeKey"], made["isBase64Encoded"]) == ("2.0", "$default", False)
    assert (made["rawPath"], made["rawQueryString"]) == ("/a%2Fb/c", "x=1&y=%20&x=2&z=")
    assert made["queryStringParameters"] == {"x": "1,2", "y": " ", "z": ""}
    assert made["headers"]["accept"] == "text/plain,text/html"
    context = made["requestContext"]
    assert context["http"] == {
        "method": "PUT",
        "path": "/a%2Fb/c",
        "protocol": "HTTP/1.1",
        "sourceIp": "198.51.100.7",
        "userAgent": "pump/1",
    }
    assert (context["domainName"], context["requestId"]) == ("api.example", "r-1")
    assert (context["time"], context["timeEpoch"]) == ("24/Nov/2025:16:00:00 +0000", 1_764_000_000_250)
    assert not {"body", "cookies"} & set(made)


def test_cookies_are_apart_from_headers() -> None:
    made = event(CIMultiDict({"Cookie": "a=1; b=2"}))
    assert made["cookies"] == ["a=1", "b=2"]
    assert "cookie" not in made["headers"]


@pytest.mark.parametrize(
    ("kind", "body", "text", "is_base64"),
    [
        ("application/json; charset=utf-8", b'{"a":1}', '{"a":1}', False),
        ("application/problem+json", b"{}", "{}", False),
        ("text/plain", "größe".encode(), "größe", False),
        ("text/plain", b"\xff", base64.b64encode(b"\xff").decode(), True),
        ("application/octet-stream", b"abc", base64.b64encode(b"abc").decode(), True),
        ("", b"abc", base64.b64encode(b"abc").decode(), True),
    ],
)
def test_text_goes_as_text_and_all_else_in_base64(
    kind: str, body: bytes, text: str, *, is_base64: bool
) -> None:
    made = event(CIMultiDict({"Content-Type": kind}), method="POST", body=body)
    assert (made["body"], made["isBase64Encoded"]) == (text, is_base64)


def test_a_result_has_a_status_headers_cookies_and_a_body() -> None:
    returned = {
        "statusCode": 201,
        "headers": {"Content-Type": "text/html", "X-Number": 7, "X-Truth": True},
        "cookies": ["a=1", "b=2"],
        "body": base64.b64encode(b"\x00\x01").decode(),
        "isBase64Encoded": True,
    }
    status, headers, body = result_of(json.dumps(returned).encode())
    assert (status, body) == (201, b"\x00\x01")
    assert (headers["content-type"], headers["x-number"], headers["x-truth"]) == ("text/html", "7", "true")
    assert headers.getall("Set-Cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("returned", [{"a": 1}, "text", 7, None, [1]])
def test_what_has_no_status_is_the_body_itself(returned: object) -> None:
    status, headers, body = result_of(json.dumps(returned).encode())
    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", returned)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"statusCode": "200"}',
        b'{"statusCode": 99}',
        b'{"statusCode": 101}',
        b'{"statusCode": 600}',
        b'{"statusCode": 200, "headers": {"A": "b\\r\\nC: d"}}',
        b'{"statusCode": 200, "headers": {"A\\r\\nB": "c"}}',
        b'{"statusCode": 200, "headers": {"A B": "c"}}',
        b'{"statusCode": 200, "headers": {"": "c"}}',
        b'{"statusCode": 200, "cookies": ["a\\nb"]}',
        b'{"statusCode": 200, "headers": []}',
        b'{"statusCode": 200, "body": "%%%", "isBase64Encoded": true}',
        b'{"statusCode": 200, "body": "\xc3\xa4", "isBase64Encoded": true}',
        b'{"statusCode": 200, "body": {"a": 1}}',
    ],
)
def test_a_result_that_makes_no_sense_is_a_bad_answer(payload: bytes) -> None:
    with pytest.raises(UpstreamError) as raised:
        result_of(payload)
    assert (raised.value.reason, raised.value.status) == (Reason.BAD_ANSWER, 502)


class Lambda:
    """Speaks Invoke: https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html ."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.answers: list[web.Response] = []
        self.url = ""
        self.pause_s = 0.0
        self.cuts = False

    async def invoke(self, request: web.Request) -> web.StreamResponse:
        assert "Credential=test/" in request.headers["Authorization"]
        self.events.append(await request.json())
        await asyncio.sleep(self.pause_s)
        if self.cuts:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.close()
            return response
        if self.answers:
            return self.answers.pop(0)
        return web.json_response({"statusCode": 200, "headers": {"X-From": "lambda"}, "body": "well"})

    def refuse(self, status: int, code: str) -> None:
        self.answers.append(
            web.json_response({"message": "no"}, status=status, headers={"x-amzn-ErrorType": code})
        )


@contextlib.asynccontextmanager
async def function() -> AsyncIterator[Lambda]:
    made = Lambda()
    app = web.Application()
    app.router.add_post("/2015-03-31/functions/pumps/invocations", made.invoke)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def terms(made: Lambda, name: str = "pumps") -> dict[str, Upstream]:
    return {
        "u": Upstream(
            kind="lambda",
            function=name,
            region="eu-central-1",
            endpoint=made.url,
            breaker=Breaking(failures_max=3, open_s=60, open_s_max=60),
        )
    }


async def test_a_function_is_invoked_and_its_result_is_the_answer() -> None:
    async with function() as made, running(terms(made)) as upstreams:
        call = call_of("POST", "/pumps?a=1", body=b"\x01")
        async with upstreams.call("u", call) as answer:
            assert (answer.status, answer.headers["x-from"], answer.endpoint) == (200, "lambda", "pumps")
            assert await answer.read(100) == b"well"
        (event,) = made.events
        assert (event["rawPath"], event["requestContext"]["http"]["method"]) == ("/pumps", "POST")
        async with upstreams.call("u", call_of("HEAD")) as answer:
            assert await answer.read(100) == b""


async def test_a_function_that_fails_is_a_bad_answer_and_its_trace_goes_nowhere() -> None:
    async with function() as made, running(terms(made)) as upstreams:
        for _ in range(5):
            made.answers.append(
                web.json_response({"errorMessage": "secret"}, headers={"X-Amz-Function-Error": "Unhandled"})
            )
            with pytest.raises(UpstreamError, match="the function failed") as raised:
                async with upstreams.call("u", call_of()):
                    pass
            assert raised.value.reason is Reason.BAD_ANSWER
        assert upstreams.status()["u"]["breaker"] == "closed"


async def test_throttling_is_tried_again_and_then_told_with_when_to_come_back() -> None:
    registry = CollectorRegistry()
    async with function() as made, running(terms(made), registry) as upstreams:
        made.refuse(429, "TooManyRequestsException")
        async with upstreams.call("u", call_of("POST", retries=QUICK)) as answer:
            assert (answer.status, answer.attempts) == (200, 2)
        for _ in range(3):
            made.refuse(429, "TooManyRequestsException")
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of(retries=QUICK)):
                pass
        assert (raised.value.reason, raised.value.status) == (Reason.THROTTLED, 503)
        assert raised.value.retry_after_s > 0
        assert count(registry, "headworks_upstream_tries_total", upstream="u", outcome="throttled") == 4


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "ResourceNotFoundException", Reason.NOT_FOUND),
        (413, "RequestTooLargeException", Reason.TOO_LARGE),
        (403, "AccessDeniedException", Reason.BAD_ANSWER),
        (500, "ServiceException", Reason.RESET),
    ],
)
async def test_each_refusal_of_the_service_has_its_name(status: int, code: str, reason: Reason) -> None:
    async with function() as made, running(terms(made)) as upstreams:
        made.refuse(status, code)
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST")):
                pass
        assert raised.value.reason is reason


async def test_a_service_that_is_ill_opens_the_breaker() -> None:
    async with function() as made, running(terms(made)) as upstreams:
        for _ in range(3):
            made.refuse(500, "ServiceException")
            with pytest.raises(UpstreamError):
                async with upstreams.call("u", call_of("POST")):
                    pass
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of()):
                pass
        assert raised.value.reason is Reason.BREAKER_OPEN
        assert len(made.events) == 3


async def test_a_function_that_is_too_slow_is_a_time_out() -> None:
    async with function() as made, running(terms(made)) as upstreams:
        async with upstreams.call("u", call_of()):
            pass  # so that the client is there already
        made.pause_s = 20
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST", timeout_s=0.2)):
                pass
        assert (raised.value.reason, raised.value.status) == (Reason.TIMEOUT, 504)


async def test_nobody_listening_is_no_connection() -> None:
    async with function() as made:
        pass
    async with running(terms(made)) as upstreams:
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST")):
                pass
        assert raised.value.reason is Reason.CONNECT


async def test_a_result_that_is_cut_short_is_a_reset() -> None:
    async with function() as made, running(terms(made)) as upstreams:
        made.cuts = True
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST")):
                pass
        assert (raised.value.reason, raised.value.status) == (Reason.RESET, 502)
