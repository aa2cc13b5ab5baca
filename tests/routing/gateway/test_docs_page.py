from __future__ import annotations

import base64
import copy
import hashlib
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from routing.gateway import openapi
from routing.gateway.documents import Documents, parse
from routing.gateway.pages import page
from routing.gateway.published import Published
from tests.support.api_documents import DATA, DEVICE, DOCUMENTS, ROUTES

VOID = {"meta", "input", "br"}
HOSTILE = "</script><script>alert(1)</script>\"' onload=x <img src=x onerror=alert(1)>"
STYLE, SCRIPT = page.asset("docs.css"), page.asset("docs.js")


class Seen(HTMLParser):
    """What a browser makes of a page; fails where elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open:
            self.inside[self._open[-1]] = self.inside.get(self._open[-1], "") + data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def document(**changes: Any) -> dict[str, Any]:
    made = openapi.published(ROUTES, DOCUMENTS, "v1", server="https://api.example.com", title="Example")
    return {**made, **changes}


def rendered(content: dict[str, Any]) -> str:
    return page.render(content, style=STYLE, script=SCRIPT, document_url="openapi.json")


def hostile(node: Any) -> Any:
    """Return a document with hostile text wherever its author writes text."""
    if isinstance(node, dict):
        return {
            key: HOSTILE
            if key in {"description", "title", "summary", "pattern", "url", "x-sunset"}
            else hostile(value)
            for key, value in node.items()
        }
    return [hostile(part) for part in node] if isinstance(node, list) else node


def test_every_operation_has_a_section_that_the_contents_lead_to() -> None:
    seen = Seen(rendered(document()))
    sections = {attributes["id"] for attributes in seen.of("section")}
    links = {
        str(attributes["href"]) for attributes in seen.of("a") if str(attributes["href"]).startswith("#")
    }
    assert "operation-create-device" in sections
    assert {link.removeprefix("#") for link in links} <= sections
    assert len(links) > len(document()["paths"])


def test_a_page_says_what_its_document_does() -> None:
    text = " ".join(Seen(rendered(document())).texts)
    for said in (
        "Add a device",
        "devices:write",
        "Deprecated since",
        "2027-01-31",
        "The caller is not known.",
    ):
        assert said in text


def test_all_text_of_a_document_is_escaped() -> None:
    plain, seen = Seen(rendered(document())), Seen(rendered(hostile(document())))
    assert [name for name, _ in seen.elements if name in {"script", "img"}] == ["script"]
    assert {name for name, _ in seen.elements} <= {name for name, _ in plain.elements}
    assert not [
        attributes for _, attributes in seen.elements if any(key.startswith("on") for key in attributes)
    ]
    assert HOSTILE in "".join(seen.texts)


def test_links_to_other_places_are_links_of_the_web_only() -> None:
    content = document()
    telemetry = content["paths"]["/v1/tenants/{tenant}/devices/{device}/telemetry"]["get"]
    assert "https://example.com/new" in rendered(content)
    telemetry["externalDocs"]["url"] = "javascript:alert(1)"
    assert "javascript:" not in rendered(content)


def test_the_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else() -> None:
    seen = Seen(rendered(document()))
    policy = page.policy(STYLE, SCRIPT)
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(seen.inside[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not [attributes for _, attributes in seen.elements if "style" in attributes or "src" in attributes]
    assert [attributes.get("href") for attributes in seen.of("link")] == []


def example_of(path: str, method: str) -> str:
    content = document()
    reader = page._Reader(content)
    return page.curl(reader, method, path, content["paths"][path][method]).replace("\\\n", "")


def test_an_example_is_a_call_that_a_shell_understands() -> None:
    words = shlex.split(example_of("/v1/tenants/{tenant}/devices", "post"))
    assert words[:3] == ["curl", "-X", "POST"]
    assert "Authorization: Bearer $TOKEN" in words
    assert "Content-Type: application/json" in words
    assert '{"name":"name"}' in words
    assert words[-1] == "https://api.example.com/v1/tenants/tenant/devices"


def test_an_example_has_the_parameters_that_are_required() -> None:
    words = shlex.split(example_of("/v1/tenants/{tenant}/devices/{device}/telemetry", "get"))
    assert words == [
        "curl",
        "-H",
        "X-API-Key: $API_KEY",
        "https://api.example.com/v1/tenants/tenant/devices/device/telemetry?metric=metric",
    ]
    assert shlex.split(example_of("/v1/files/{rest}", "put"))[-2:] == [
        "@file",
        "https://api.example.com/v1/files/rest",
    ]


@pytest.mark.parametrize("server", ["/", "$(reboot)", "https://a/`b`", 'https://a/"; reboot'])
def test_nothing_of_a_document_is_run_by_the_shell_that_an_example_is_pasted_into(server: str) -> None:
    content = document(servers=[{"url": server}])
    create = content["paths"]["/v1/tenants/{tenant}/devices"]["post"]
    create["parameters"][0] |= {"name": "tenant", "schema": {"enum": ["$(reboot)`x`\"'"]}}
    content["components"]["schemas"]["NewDevice"]["example"] = {"name": "it's $(reboot)"}
    text = page.curl(page._Reader(content), "post", "/v1/tenants/{tenant}/devices", create)
    outside = [word for word in shlex.split(text) if "reboot" in word]
    assert outside == ['{"name":"it\'s $(reboot)"}', shlex.split(text)[-1]]
    assert "$(" not in shlex.split(text)[-1]
    assert "`" not in text


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "number"}, 1),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["string", "null"]}, "name"),
        ({"type": "string", "format": "date-time"}, "2026-01-31T00:00:00Z"),
        ({"type": "array", "items": {"const": 1}}, [1]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"examples": ["a", "b"]}, "a"),
        ({"$ref": "#/components/schemas/Status"}, "active"),
        ({"properties": {"a": {"type": "integer"}}}, {"a": 1}),
        (True, {}),
    ],
)
def test_examples_are_the_plainest_values(schema: Any, value: Any) -> None:
    assert page.example(page._Reader(document()), schema, "name") == value


def test_an_example_of_a_type_inside_itself_ends() -> None:
    data = copy.deepcopy(DATA)
    data["components"]["schemas"]["Value"] = {
        "type": "object",
        "required": ["inner"],
        "properties": {"inner": {"$ref": "#/components/schemas/Value"}},
    }
    documents = Documents({"data": parse("data", data), "device": parse("device", DEVICE)})
    content = openapi.published(ROUTES, documents, "v2", server="/", title="t")
    Seen(rendered(content))
    assert page.example(page._Reader(content), {"$ref": "#/components/schemas/Value"}, "")["inner"]["inner"]


PUBLISHED = Published(ROUTES, DOCUMENTS, server="/", title="Example")


class Asked:
    def __init__(self, version: str, **headers: str) -> None:
        self.version = version
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.request: web.BaseRequest = make_mocked_request("GET", "/", headers=named)


async def test_documents_and_pages_are_served_by_version() -> None:
    answer = await PUBLISHED.openapi(Asked("v2"))
    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert isinstance(answer.body, bytes)
    assert b"/v2/tenants" in answer.body
    answer = await PUBLISHED.docs(Asked("v1"))
    assert answer.content_type == "text/html"
    assert answer.headers["Content-Security-Policy"] == page.policy(STYLE, SCRIPT)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (await PUBLISHED.docs(Asked("v9"))).status == 404


async def test_what_a_caller_has_already_is_not_sent_again() -> None:
    etag = (await PUBLISHED.docs(Asked("v1"))).headers["ETag"]
    again = await PUBLISHED.docs(Asked("v1", If_None_Match=etag))
    assert (again.status, again.body) == (304, None)
    assert again.headers["ETag"] == etag
