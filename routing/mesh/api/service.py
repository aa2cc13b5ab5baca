"""What each operation does: a decider over a store, which is given the time.

All of a call happens in one transaction, so that of two creates at once one wins, and what was
answered is kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import uuid4

import msgspec

from routing.mesh.api.errors import ApiError, bad
from routing.mesh.api.operations import Collection, Operation, check_name
from routing.mesh.api.records import collection_of, made
from routing.mesh.api.settings import Api
from routing.mesh.api.store import Answered, Record, Store
from routing.mesh.api.tags import TAGS_MAX, Tag, TagKey, tagged, untagged
from routing.mesh.model.policies import Policy
from routing.mesh.model.resources import GatewayRoute, Resource, Route, VirtualService
from routing.mesh.model.shape import Shape
from routing.mesh.references import ROUTE_KINDS

PAGE_MAX: Final = 100
Answer = dict[str, Any]


class _Body(Shape, frozen=True, kw_only=True):
    """What a call of any operation may have in its body; which of it, `BODIES` says."""

    client_token: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    spec: dict[str, Any] | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=TAGS_MAX)] | None = None
    tag_keys: Annotated[list[TagKey], msgspec.Meta(max_length=TAGS_MAX)] | None = None


BODIES: Final[dict[str, set[str]]] = {
    "create": {"clientToken", "spec", "tags"},
    "update": {"clientToken", "spec"},
    "tag": {"tags"},
    "untag": {"tagKeys"},
}


class MeshApi:
    """The operations. Each returns its answer; raises `ApiError` and `StoreError`."""

    def __init__(self, store: Store, settings: Api) -> None:
        self._store = store
        self._settings = settings
        self._arn = f"arn:aws:appmesh:{settings.region}:{settings.account_id}:"

    def call(self, operation: Operation, query: Mapping[str, str], body: bytes, now_s: float) -> Answer:
        """Do what a call asks for; its body is JSON, or nothing."""
        try:
            return self._call(operation, query, body, now_s)
        except RecursionError as error:
            raise bad("body", "it is nested too deeply") from error

    def _call(self, operation: Operation, query: Mapping[str, str], body: bytes, now_s: float) -> Answer:
        given, name = _body(operation, body)
        owner = query.get("meshOwner", self._settings.account_id)
        if owner != self._settings.account_id:
            raise ApiError("NotFoundException", f"meshOwner: the account {owner} shares no mesh")
        with self._store.transaction():
            match operation.verb:
                case "create":
                    return self._once(operation, given, name, now_s)
                case "update":
                    return self._once(operation, given, operation.names[-1], now_s)
                case "describe":
                    return self._shown(operation, self._found(_path(operation)))
                case "delete":
                    return self._delete(operation)
                case "list":
                    return self._list(operation, query)
                case _:
                    return self._tags(operation, given, query)

    def _once(self, operation: Operation, given: _Body, name: str, now_s: float) -> Answer:
        """Create or update, or answer as to the call before with the same `clientToken`."""
        change = msgspec.json.encode([operation.verb, _path(operation), name, given.spec, given.tags])
        digest = hashlib.sha256(change).hexdigest()
        token = given.client_token
        before = None if token is None else self._store.answered(token, now_s)
        if before is not None:
            if before.digest != digest:
                raise ApiError("ConflictException", "clientToken: it was used for another call")
            return before.answer
        do = self._create if operation.verb == "create" else self._update
        answer = do(operation, given, name, now_s)
        if token is not None:
            self._store.remember(token, Answered(digest, answer), now_s)
        return answer

    def _create(self, operation: Operation, given: _Body, name: str, now_s: float) -> Answer:
        collection = _collection(operation)
        check_name(collection.member, name)
        self._check_parents(operation)
        parent = _path(operation)
        path = f"{parent}/{name}"
        if self._store.get(path) is not None:
            raise ApiError("ConflictException", f"{path} exists already")
        if self._store.count(parent) >= (most := self._most(collection)):
            raise ApiError("LimitExceededException", f"there are at most {most} {collection.plural}")
        spec, refers_to = self._checked(operation, (*operation.names, name), given.spec)
        record = Record(
            path=path,
            parent=parent,
            name=name,
            uid=str(uuid4()),
            version=1,
            created_s=now_s,
            updated_s=now_s,
            spec=spec,
            tags=tagged({}, given.tags or []),
        )
        self._store.put(record, refers_to)
        return self._shown(operation, record)

    def _update(self, operation: Operation, given: _Body, name: str, now_s: float) -> Answer:
        del name
        before = self._found(_path(operation))
        spec, refers_to = self._checked(operation, operation.names, given.spec)
        record = msgspec.structs.replace(
            before, spec=spec, version=before.version + 1, updated_s=max(now_s, before.updated_s)
        )
        self._store.put(record, refers_to)
        return self._shown(operation, record)

    def _delete(self, operation: Operation) -> Answer:
        record = self._found(_path(operation))
        if (user := self._store.user_of(record.path)) is not None:
            raise ApiError("ResourceInUseException", f"{record.path} is in use by {user}")
        self._store.delete(record.path)
        return self._shown(operation, record, "DELETED")

    def _list(self, operation: Operation, query: Mapping[str, str]) -> Answer:
        collection = _collection(operation)
        self._check_parents(operation)
        limit, after = _page(query, PAGE_MAX)
        found = self._store.page(_path(operation), after, limit + 1)
        shown = [
            self._names(collection, record) | self._metadata(record, listed=True) for record in found[:limit]
        ]
        answer: Answer = {collection.plural: shown}
        if len(found) > limit:
            answer["nextToken"] = _token(found[limit - 1].name)
        return answer

    def _tags(self, operation: Operation, given: _Body, query: Mapping[str, str]) -> Answer:
        arn = query.get("resourceArn", "")
        if not arn.startswith(self._arn):
            raise bad("resourceArn", f"it does not begin with {self._arn}")
        record = self._found(arn.removeprefix(self._arn))
        if operation.verb == "tags":
            limit, after = _page(query, TAGS_MAX)
            keys = sorted(key for key in record.tags if key > after)
            answer: Answer = {"tags": [{"key": key, "value": record.tags[key]} for key in keys[:limit]]}
            if len(keys) > limit:
                answer["nextToken"] = _token(keys[limit - 1])
            return answer
        if operation.verb == "tag":
            tags = tagged(record.tags, given.tags or [])
        else:
            tags = untagged(record.tags, given.tag_keys or [])
        _, refers_to = _read(record, record.spec)
        self._store.put(msgspec.structs.replace(record, tags=tags), refers_to)
        return {}

    def _checked(
        self, operation: Operation, names: tuple[str, ...], spec: dict[str, Any] | None
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Return a spec without empty members, and the paths that it refers to, which are there."""
        collection = _collection(operation)
        if spec is None:
            if collection.parents:
                raise bad("spec", "it is required")
            spec = {}
        kept, refers_to = _converted(collection, names, spec)
        for path in sorted(refers_to):
            if self._store.get(path) is None:
                raise ApiError("NotFoundException", f"spec: there is no {path}")
        return kept, refers_to

    def _check_parents(self, operation: Operation) -> None:
        path = ""
        for kind, name in zip(_collection(operation).parents, operation.names, strict=False):
            path = f"{path}/{kind}/{name}".strip("/")
            self._found(path)

    def _most(self, collection: Collection) -> int:
        by_depth = (self._settings.meshes_max, self._settings.in_mesh_max, self._settings.routes_max)
        return by_depth[len(collection.parents)]

    def _found(self, path: str) -> Record:
        record = self._store.get(path)
        if record is None:
            raise ApiError("NotFoundException", f"there is no {path}")
        return record

    def _shown(self, operation: Operation, record: Record, status: str = "ACTIVE") -> Answer:
        return self._names(_collection(operation), record) | {
            "metadata": self._metadata(record),
            "spec": record.spec,
            "status": {"status": status},
        }

    def _names(self, collection: Collection, record: Record) -> Answer:
        kinds = (*collection.parents, collection.kind)
        return {f"{kind}Name": name for kind, name in zip(kinds, record.path.split("/")[1::2], strict=True)}

    def _metadata(self, record: Record, *, listed: bool = False) -> Answer:
        shown: Answer = {
            "arn": f"{self._arn}{record.path}",
            "createdAt": round(record.created_s, 3),
            "lastUpdatedAt": round(record.updated_s, 3),
            "meshOwner": self._settings.account_id,
            "resourceOwner": self._settings.account_id,
            "version": record.version,
        }
        return shown if listed else shown | {"uid": record.uid}


def _collection(operation: Operation) -> Collection:
    assert operation.collection is not None
    return operation.collection


def _path(operation: Operation) -> str:
    """Return the path of the resource, or of the collection where the last name is not there."""
    collection = _collection(operation)
    path = ""
    for kind, name in zip((*collection.parents, collection.kind), (*operation.names, ""), strict=False):
        path = f"{path}/{kind}/{name}".strip("/")
    return path


def _body(operation: Operation, body: bytes) -> tuple[_Body, str]:
    """Return the body, and the name of what is created."""
    try:
        given = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad("body", f"it is not a JSON object: {error}") from error
    name = ""
    if operation.verb == "create":
        member = _collection(operation).member
        name = given.pop(member, None)
        if not isinstance(name, str):
            raise bad(member, "it is required, a string")
    given = {key: value for key, value in given.items() if value is not None}
    known = BODIES.get(operation.verb, set())
    if unknown := sorted(given.keys() - known):
        raise bad(unknown[0], "this operation has no such member")
    if operation.verb in {"tag", "untag"} and (missing := sorted(known - given.keys())):
        raise bad(missing[0], "it is required")
    try:
        return msgspec.convert(given, _Body), name
    except msgspec.ValidationError as error:
        raise _wrong(error) from error


def _read(record: Record, spec: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    return _converted(collection_of(record.path), tuple(record.path.split("/")[1::2]), spec)


def _converted(
    collection: Collection, names: tuple[str, ...], spec: dict[str, Any]
) -> tuple[dict[str, Any], frozenset[str]]:
    kept: dict[str, Any] = _without_nulls(spec)
    try:
        resource = made(collection, names, kept)
    except msgspec.ValidationError as error:
        raise _wrong(error) from error
    return kept, frozenset(_refers_to(resource))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _refers_to(resource: Resource) -> list[str]:
    """Return the paths without which a resource means nothing; a backend may come later."""
    mesh = f"mesh/{resource.mesh_name}"
    match resource:
        case VirtualService(spec=spec) if spec.provider is not None:
            if spec.provider.virtual_node is not None:
                return [f"{mesh}/virtualNode/{spec.provider.virtual_node.virtual_node_name}"]
            assert spec.provider.virtual_router is not None
            return [f"{mesh}/virtualRouter/{spec.provider.virtual_router.virtual_router_name}"]
        case Route(spec=spec):
            [of_kind] = [found for kind in ROUTE_KINDS if (found := getattr(spec, kind)) is not None]
            return [f"{mesh}/virtualNode/{target.virtual_node}" for target in of_kind.action.weighted_targets]
        case GatewayRoute(spec=spec):
            [of_kind] = [found for kind in ROUTE_KINDS[:3] if (found := getattr(spec, kind)) is not None]
            return [f"{mesh}/virtualService/{of_kind.action.target.virtual_service.virtual_service_name}"]
        case Policy():
            return [resource.target_path]
        case _:
            return []


def _wrong(error: msgspec.ValidationError) -> ApiError:
    text, _, where = str(error).partition(" - at ")
    return bad(where.strip("`").removeprefix("$.") or "body", text)


def _page(query: Mapping[str, str], most: int) -> tuple[int, str]:
    """Return how many are asked for, and after which name."""
    limit = query.get("limit", str(most))
    if not (
        limit.isascii() and limit.isdecimal() and len(limit) <= len(str(most)) and 1 <= int(limit) <= most
    ):
        raise bad("limit", f"it is a number from 1 to {most}")
    try:
        return int(limit), base64.b64decode(
            query.get("nextToken", ""), altchars=b"-_", validate=True
        ).decode()
    except (binascii.Error, ValueError) as error:
        raise bad("nextToken", "it is none of ours") from error


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()
