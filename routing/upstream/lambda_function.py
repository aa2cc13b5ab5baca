"""AWS Lambda as an upstream: API Gateway's payload format 2.0 in and out.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from routing.aws import AwsClient
from routing.upstream.call import Answer, Call, Reason, UpstreamError, WholeBody
from routing.upstream.service import Ask
from runtime import clock

TEXTS: Final = ("text/", "application/json", "application/javascript", "application/xml")
"""Bodies of these types, and of +json and +xml, are passed as text; all others in base64."""
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What a header may be called (RFC 9110 5.6.2)."""


class _Result(msgspec.Struct, rename="camel"):
    """What a function returns that knows of the format."""

    status_code: int
    headers: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    cookies: list[str] = msgspec.field(default_factory=list)
    body: str | None = None
    is_base64_encoded: bool = False


def asks(function: str) -> Ask:
    """Return what invokes `function` and waits for its result."""

    async def ask(client: AwsClient, call: Call, timeout_s: float) -> Answer:
        event = event_of(call, now_s=clock.unix_s(), request_id=str(uuid.uuid4()))
        answer = await client.call(
            "invoke",
            deadline_s=timeout_s,
            FunctionName=function,
            InvocationType="RequestResponse",
            Payload=msgspec.json.encode(event),
        )
        if answer.get("FunctionError"):
            # The payload is a stack trace, which is nobody's business but the function's log.
            raise UpstreamError(Reason.BAD_ANSWER, "the function failed")
        status, headers, body = result_of(answer.get("Payload") or b"null")
        return Answer(
            status=status,
            headers=CIMultiDictProxy(headers),
            endpoint=function,
            body=WholeBody(b"" if call.method == "HEAD" else body),
        )

    return ask


def event_of(call: Call, *, now_s: float, request_id: str) -> dict[str, Any]:
    """Return the event of a call, as API Gateway makes it for a `$default` route."""
    path, _, query = call.target.partition("?")
    headers = {name.lower(): ",".join(call.headers.getall(name)) for name in call.headers}
    cookie = headers.pop("cookie", "")
    arguments: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        arguments.setdefault(name, []).append(value)
    body, is_base64 = _text_of(call.body, headers.get("content-type", ""))
    at = datetime.fromtimestamp(now_s, UTC)
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "headworks",
            "domainName": headers.get("x-forwarded-host", headers.get("host", "")),
            "http": {
                "method": call.method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": headers.get("x-forwarded-for", "").partition(",")[0].strip(),
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now_s * 1000),
        },
        "isBase64Encoded": is_base64,
    }
    if cookie:
        event["cookies"] = [each.strip() for each in cookie.split(";")]
    if arguments:
        event["queryStringParameters"] = {name: ",".join(values) for name, values in arguments.items()}
    if call.body:
        event["body"] = body
    return event


def result_of(payload: bytes) -> tuple[int, CIMultiDict[str], bytes]:
    """Return (status, headers, body) of what a function returned; raises `UpstreamError`.

    What has no statusCode is the body itself, as JSON, of a 200.
    """
    try:
        returned = msgspec.json.decode(payload)
        if not (isinstance(returned, dict) and "statusCode" in returned):
            return 200, CIMultiDict({"Content-Type": "application/json"}), msgspec.json.encode(returned)
        result = msgspec.convert(returned, _Result)
        body = _body_of(result)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise UpstreamError(
            Reason.BAD_ANSWER, "the function's result is not of payload format 2.0"
        ) from error
    if not 200 <= result.status_code <= 599:
        raise UpstreamError(Reason.BAD_ANSWER, "the function's status is not one")
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in result.headers.items():
        text = msgspec.json.encode(value).decode() if not isinstance(value, str) else value
        if TOKEN.fullmatch(name) is None or _breaks_lines(text):
            raise UpstreamError(Reason.BAD_ANSWER, "the function's headers cannot be sent")
        headers[name] = text
    for cookie in result.cookies:
        if _breaks_lines(cookie):
            raise UpstreamError(Reason.BAD_ANSWER, "the function's cookies cannot be sent")
        headers.add("Set-Cookie", cookie)
    headers.setdefault("Content-Type", "application/json")
    return result.status_code, headers, body


def _body_of(result: _Result) -> bytes:
    if result.is_base64_encoded:
        return base64.b64decode(result.body or "", validate=True)
    return (result.body or "").encode()


def _text_of(body: bytes, content_type: str) -> tuple[str, bool]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith(TEXTS) or kind.endswith(("+json", "+xml")) or not body:
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True


def _breaks_lines(text: str) -> bool:
    return any(each in text for each in "\r\n\0")
