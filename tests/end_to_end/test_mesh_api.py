"""The App Mesh API as boto3 sees it: a real process, compared with moto and the service model."""

from __future__ import annotations

import contextlib
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.session
import pytest
from moto.server import ThreadedMotoServer

from tests.support.mesh_api import RESOURCES, MeshApiProcess, appmesh, mesh_api

MODEL = botocore.session.get_session().get_service_model("appmesh", api_version="2019-01-25")
PLURALS = {kind: "meshes" if kind == "mesh" else f"{kind}s" for kind, _, _ in RESOURCES}
OURS = {"arn", "uid", "createdAt", "lastUpdatedAt", "meshOwner", "resourceOwner"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshApiProcess]:
    with mesh_api(tmp_path_factory.mktemp("mesh-api")) as api:
        yield api


@pytest.fixture
def api(served: MeshApiProcess) -> Iterator[Any]:
    client = served.client()
    yield client
    for kind, names, _ in reversed(RESOURCES):
        with contextlib.suppress(client.exceptions.NotFoundException):
            getattr(client, f"delete_{kind}")(**names)


def camel(kind: str) -> str:
    first, *rest = kind.split("_")
    return first + "".join(part.title() for part in rest)


def conforms(value: Any, shape: Any, where: str = "") -> None:
    """Assert that a value has the members of a shape, of its kinds, and all that are required."""
    match shape.type_name:
        case "structure":
            assert set(shape.required_members) <= set(value), where
            for key, inner in value.items():
                conforms(inner, shape.members[key], f"{where}.{key}")
        case "list":
            for inner in value:
                conforms(inner, shape.member, where)
        case "string":
            assert isinstance(value, str), where
            assert value in (getattr(shape, "enum", None) or [value]), where
        case "timestamp":
            assert isinstance(value, datetime), where
        case "integer" | "long":
            assert isinstance(value, int), where
        case kind:
            assert kind == "boolean", (kind, where)


def call(client: Any, name: str, **given: Any) -> dict[str, Any]:
    answer: dict[str, Any] = getattr(client, name)(**given)
    del answer["ResponseMetadata"]
    operation = next(each for each in MODEL.operation_names if botocore.xform_name(each) == name)
    shape = MODEL.operation_model(operation).output_shape
    if "payload" in shape.serialization:
        assert set(answer) == {shape.serialization["payload"]}
    conforms(answer, shape, name)
    return answer


def scenario(client: Any) -> list[dict[str, Any]]:
    answers = []
    for kind, names, (first, *others) in RESOURCES:
        above = {} if kind == "mesh" else dict(list(names.items())[:-1])
        answers.append(call(client, f"create_{kind}", **names, spec=first, tags=[{"key": "k", "value": "v"}]))
        answers.append(call(client, f"describe_{kind}", **names))
        answers += [call(client, f"update_{kind}", **names, spec=spec) for spec in others]
        answers.append(call(client, f"describe_{kind}", **names))
        answers.append(call(client, f"list_{PLURALS[kind]}", **above))
        arn = answers[0 - 2][camel(kind)]["metadata"]["arn"]
        answers.append(call(client, "list_tags_for_resource", resourceArn=arn))
    return [*answers, *(call(client, f"delete_{kind}", **names) for kind, names, _ in reversed(RESOURCES))]


def specs_of(answers: list[dict[str, Any]]) -> list[Any]:
    return [one["spec"] for answer in answers for one in answer.values() if "spec" in one]


def test_every_resource_is_created_described_listed_updated_and_deleted(api: Any) -> None:
    answers = scenario(api)
    wanted = []
    for _, _, specs in RESOURCES:
        wanted += [specs[0], specs[0], *specs[1:], specs[-1]]
    assert specs_of(answers) == [*wanted, *(specs[-1] for _, _, specs in reversed(RESOURCES))]
    deleted = [next(iter(answer.values())) for answer in answers[-len(RESOURCES) :]]
    assert [one["status"]["status"] for one in deleted] == ["DELETED"] * len(RESOURCES)
    assert [one["metadata"]["version"] for one in deleted] == [
        len(specs) for _, _, specs in reversed(RESOURCES)
    ]
    assert api.list_meshes()["meshes"] == []


def bare(value: Any) -> Any:
    """Leave out what each service makes up, and the empty structures that moto has for absent members."""
    if isinstance(value, dict):
        made = {key: bare(inner) for key, inner in value.items() if key not in OURS}
        return {key: inner for key, inner in made.items() if inner != {}}
    return [bare(inner) for inner in value] if isinstance(value, list) else value


MOTO_HAS = {"mesh", "virtual_node", "virtual_router", "route"}


def test_answers_are_those_of_moto(api: Any) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        both = [moto_scenario(client) for client in (api, appmesh(f"http://{host}:{port}"))]
    finally:
        server.stop()
    ours, theirs = both
    assert [(name, bare(answer)) for name, answer in ours] == [
        (name, bare(answer)) for name, answer in theirs
    ]


def moto_scenario(client: Any) -> list[tuple[str, Any]]:
    answers = []
    known = [each for each in RESOURCES if each[0] in MOTO_HAS]
    for kind, names, (first, *others) in known:
        for verb, spec in [("create", first), *(("update", spec) for spec in others)]:
            answers.append((f"{verb}_{kind}", call(client, f"{verb}_{kind}", **names, spec=spec)))
        answers.append((f"describe_{kind}", call(client, f"describe_{kind}", **names)))
        above = {} if kind == "mesh" else dict(list(names.items())[:-1])
        answers.append((f"list_{kind}", call(client, f"list_{PLURALS[kind]}", **above)))
    for kind, names, _ in reversed(known):
        answers.append((f"delete_{kind}", call(client, f"delete_{kind}", **names)))
    return answers


def refused(client: Any, name: str, **given: Any) -> tuple[str, int, str]:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        getattr(client, name)(**given)
    answer = caught.value.response
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return answer["Error"]["Code"], status, answer["Error"]["Message"]


def test_errors_have_their_names_and_statuses(api: Any) -> None:
    assert refused(api, "describe_mesh", meshName="shop")[:2] == ("NotFoundException", 404)
    api.create_mesh(meshName="shop")
    assert refused(api, "create_mesh", meshName="shop")[:2] == ("ConflictException", 409)
    code, status, text = refused(
        api,
        "create_virtual_node",
        meshName="shop",
        virtualNodeName="node",
        spec={"listeners": [{"portMapping": {"port": 8080, "protocol": "smtp"}}]},
    )
    assert (code, status) == ("BadRequestException", 400)
    assert text.startswith("spec.listeners[0].portMapping.protocol: ")
    provider = {"virtualNode": {"virtualNodeName": "node"}}
    service = {"meshName": "shop", "virtualServiceName": "cart.local"}
    assert refused(api, "create_virtual_service", **service, spec={"provider": provider})[:2] == (
        "NotFoundException",
        404,
    )
    api.create_virtual_node(meshName="shop", virtualNodeName="node", spec={})
    api.create_virtual_service(**service, spec={"provider": provider})
    for name, given in (
        ("delete_virtual_node", {"meshName": "shop", "virtualNodeName": "node"}),
        ("delete_mesh", {"meshName": "shop"}),
    ):
        assert refused(api, name, **given)[:2] == ("ResourceInUseException", 409)
    assert refused(api, "describe_mesh", meshName="shop", meshOwner="1" * 12)[0] == "NotFoundException"
    assert refused(api, "list_meshes", nextToken="?")[0] == "BadRequestException"


def test_a_client_token_does_a_thing_once(api: Any) -> None:
    first = api.create_mesh(meshName="shop", clientToken="once")["mesh"]
    assert api.create_mesh(meshName="shop", clientToken="once")["mesh"] == first
    assert refused(api, "create_mesh", meshName="other", clientToken="once")[0] == "ConflictException"


def test_lists_come_in_pages(api: Any) -> None:
    api.create_mesh(meshName="shop")
    names = [f"node-{number}" for number in range(7)]
    for name in reversed(names):
        api.create_virtual_node(meshName="shop", virtualNodeName=name, spec={})
    pages = api.get_paginator("list_virtual_nodes").paginate(
        meshName="shop", PaginationConfig={"PageSize": 3}
    )
    listed = [[node["virtualNodeName"] for node in page["virtualNodes"]] for page in pages]
    assert listed == [names[:3], names[3:6], names[6:]]
    for name in names:
        api.delete_virtual_node(meshName="shop", virtualNodeName=name)


def test_a_resource_has_fifty_tags_at_most(api: Any) -> None:
    mesh = api.create_mesh(meshName="shop")["mesh"]
    arn = mesh["metadata"]["arn"]
    fifty = [{"key": f"k{number:02}", "value": str(number)} for number in range(50)]
    api.tag_resource(resourceArn=arn, tags=fifty)
    one_more = {"resourceArn": arn, "tags": [{"key": "more", "value": ""}]}
    assert refused(api, "tag_resource", **one_more)[:2] == ("TooManyTagsException", 400)
    pages = api.get_paginator("list_tags_for_resource").paginate(
        resourceArn=arn, PaginationConfig={"PageSize": 20}
    )
    assert [tag for page in pages for tag in page["tags"]] == fifty
    api.untag_resource(resourceArn=arn, tagKeys=["k00"])
    assert api.list_tags_for_resource(resourceArn=arn)["tags"] == fifty[1:]
    assert api.describe_mesh(meshName="shop")["mesh"] == mesh


def test_of_two_creates_at_once_one_wins(served: MeshApiProcess, api: Any) -> None:
    clients = [served.client() for _ in range(8)]

    def create(client: Any) -> bool:
        try:
            client.create_mesh(meshName="shop")
        except client.exceptions.ConflictException:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(create, clients)) == [False] * 7 + [True]
    assert len(api.list_meshes()["meshes"]) == 1


def test_who_may_not_is_refused(served: MeshApiProcess, api: Any) -> None:
    for client in (served.client(secret="x" * 16), served.client(key="AKNOBODY")):
        assert refused(client, "list_meshes")[:2] == ("InvalidSignatureException", 403)
    assert refused(served.client("AKREADER"), "create_mesh", meshName="shop")[0] == "ForbiddenException"
    assert refused(served.client("AKACME"), "list_meshes")[0] == "ForbiddenException"
    assert served.client("AKREADER").list_meshes()["meshes"] == api.list_meshes()["meshes"] == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{served.url}/v20190125/meshes", timeout=5)  # noqa: S310  # a server of ours
    assert caught.value.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
    caught.value.close()


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    with mesh_api(tmp_path, "meshes_max = 20") as api:
        client = api.client()
        made = [client.create_mesh(meshName=f"mesh-{number}")["mesh"] for number in range(20)]
        assert refused(client, "create_mesh", meshName="more")[:2] == ("LimitExceededException", 400)
        assert api.end(signal.SIGKILL) == -signal.SIGKILL
        api.start()
        client = api.client()
        assert [client.describe_mesh(meshName=mesh["meshName"])["mesh"] for mesh in made] == made
        assert api.end() == 0
        assert "mesh_api_stopped" in api.log.read_text()


def test_a_process_that_cannot_start_says_why_and_how(served: MeshApiProcess, tmp_path: Path) -> None:
    for bind, code, why in (
        (served.url.removeprefix("http://"), 1, "cannot listen on"),
        ("nowhere", 2, "api.bind"),
    ):
        other = MeshApiProcess(tmp_path, "drain_deadline_s = 1.0")
        assert other.run(f"--set=api.bind={bind!r}") == code
        assert why in other.log.read_text()
    (tmp_path / "keys.toml").chmod(0o644)
    assert other.run() == 2
    assert "chmod 600" in other.log.read_text()
