"""Resources in one table of Amazon DynamoDB, which several processes may share.

An item's key is `parent` and `name`, so that a collection is one query. Beside resources there are who refers
to them, tokens, which the table's time to live takes away, and one item that counts transactions: each writes
it on the condition that nobody else did since it began, so that whatever it read still holds when it ends.
Source: Amazon DynamoDB Developer Guide, "Optimistic locking with version number", TransactWriteItems.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import botocore.session
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from routing.mesh.api.operations import COLLECTIONS
from routing.mesh.api.store import TOKENS_S, Answered, Record, StoreError

ITEMS_MAX: Final = 100
"""Of one transaction (service limit of TransactWriteItems)."""
ATTEMPTS: Final = 3
DEADLINE_S: Final = 5
RESOURCE: Final = "resource#"
REFERRING: Final = "referring#"
USED: Final = "used#"
REVISION: Final = {"parent": {"S": "revision"}, "name": {"S": "revision"}}
Item = dict[str, Any]


class DynamoDbStore:
    """A `Store` in a table. Raises `StoreError`, also where another process changed something meanwhile."""

    def __init__(self, table: str, *, region: str, endpoint: str = "") -> None:
        self._table = table
        self._writes: list[Item] = []
        self._pending: dict[str, Record | None] = {}
        config = Config(
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            connect_timeout=DEADLINE_S,
            read_timeout=DEADLINE_S,
        )
        try:
            self._client = botocore.session.get_session().create_client(
                "dynamodb", region_name=region, endpoint_url=endpoint or None, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise StoreError(str(error)) from error
        self.revision()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done in it, or nothing."""
        began = self.revision()
        self._writes, self._pending = [], {}
        try:
            yield
            if self._writes:
                self._commit(began)
        finally:
            self._writes, self._pending = [], {}

    def revision(self) -> int:
        """Return how many transactions changed something."""
        found = self._call("get_item", Key=REVISION, ConsistentRead=True).get("Item")
        return 0 if found is None else int(found["count"]["N"])

    def get(self, path: str) -> Record | None:
        """Return a resource."""
        if path in self._pending:
            return self._pending[path]
        found = self._call("get_item", Key=_key(path), ConsistentRead=True).get("Item")
        return None if found is None else _record(found)

    def put(self, record: Record, refers_to: frozenset[str]) -> None:
        """Keep a resource, new or changed, and the paths that it refers to."""
        before = self._refers_to(record.path)
        self._write("Put", Item=_item(record, refers_to))
        for path in before - refers_to:
            self._write("Delete", Key=_referring(path, record.path))
        for path in refers_to - before:
            self._write("Put", Item=_referring(path, record.path))
        self._pending[record.path] = record

    def delete(self, path: str) -> None:
        """Forget a resource."""
        for target in self._refers_to(path):
            self._write("Delete", Key=_referring(target, path))
        self._write("Delete", Key=_key(path))
        self._pending[path] = None

    def page(self, parent: str, after: str, limit: int) -> list[Record]:
        """Return resources of a collection by name, from the one after `after` on."""
        return [_record(each) for each in self._query(f"{RESOURCE}{parent}", after, limit)]

    def all(self) -> list[Record]:
        """Return all resources."""
        found: list[Item] = []
        asked: dict[str, Any] = {
            "ConsistentRead": True,
            "FilterExpression": "begins_with(#parent, :kind)",
            "ExpressionAttributeNames": {"#parent": "parent"},
            "ExpressionAttributeValues": {":kind": {"S": RESOURCE}},
        }
        while True:
            answer = self._call("scan", **asked)
            found += answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return sorted((_record(each) for each in found), key=lambda each: each.path)
            asked["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def count(self, parent: str) -> int:
        """Return how many a collection has."""
        asked: dict[str, Any] = {
            "ConsistentRead": True,
            "Select": "COUNT",
            "KeyConditionExpression": "#parent = :parent",
            "ExpressionAttributeNames": {"#parent": "parent"},
            "ExpressionAttributeValues": {":parent": {"S": f"{RESOURCE}{parent}"}},
        }
        count = 0
        while True:
            answer = self._call("query", **asked)
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            asked["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def user_of(self, path: str) -> str | None:
        """Return something that is below a resource, or refers to it."""
        kind = path.split("/")[-2]
        for below in COLLECTIONS.values():
            if below.parents and below.parents[-1] == kind:
                for found in self._query(f"{RESOURCE}{path}/{below.kind}", "", 1):
                    return _record(found).path
        for found in self._query(f"{REFERRING}{path}", "", 1):
            return str(found["name"]["S"])
        return None

    def answered(self, token: str, now_s: float) -> Answered | None:
        """Return what a token was used for."""
        found = self._call("get_item", Key=_token(token), ConsistentRead=True).get("Item")
        if found is None or int(found["ends_s"]["N"]) < now_s:
            return None
        return Answered(found["digest"]["S"], msgspec.json.decode(found["answer"]["B"]))

    def remember(self, token: str, answered: Answered, now_s: float) -> None:
        """Keep what a token was used for, for some time."""
        item = _token(token) | {
            "digest": {"S": answered.digest},
            "answer": {"B": msgspec.json.encode(answered.answer)},
            "ends_s": {"N": str(int(now_s) + TOKENS_S)},
        }
        self._write("Put", Item=item)

    def close(self) -> None:
        """Let go of it."""
        self._client.close()

    def _refers_to(self, path: str) -> frozenset[str]:
        found = self._call("get_item", Key=_key(path), ConsistentRead=True).get("Item")
        return frozenset() if found is None else frozenset(found.get("refers_to", {}).get("SS", ()))

    def _query(self, parent: str, after: str, limit: int) -> list[Item]:
        found: list[Item] = []
        asked: dict[str, Any] = {
            "ConsistentRead": True,
            "Limit": limit,
            "KeyConditionExpression": "#parent = :parent",
            "ExpressionAttributeNames": {"#parent": "parent"},
            "ExpressionAttributeValues": {":parent": {"S": parent}},
        }
        if after:
            asked["KeyConditionExpression"] += " AND #name > :after"
            asked["ExpressionAttributeNames"]["#name"] = "name"
            asked["ExpressionAttributeValues"][":after"] = {"S": after}
        while True:
            answer = self._call("query", **asked)
            found += answer["Items"]
            if len(found) >= limit or "LastEvaluatedKey" not in answer:
                return found[:limit]
            asked["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _write(self, what: str, **members: Any) -> None:
        self._writes.append({what: {"TableName": self._table, **members}})

    def _commit(self, began: int) -> None:
        count: Item = {
            "TableName": self._table,
            "Key": REVISION,
            "UpdateExpression": "SET #count = :next",
            "ConditionExpression": "#count = :began" if began else "attribute_not_exists(#count)",
            "ExpressionAttributeNames": {"#count": "count"},
            "ExpressionAttributeValues": {":next": {"N": str(began + 1)}},
        }
        if began:
            count["ExpressionAttributeValues"][":began"] = {"N": str(began)}
        items = [{"Update": count}, *self._writes]
        if len(items) > ITEMS_MAX:
            raise StoreError(f"a change has {len(items)} parts, of which DynamoDB takes {ITEMS_MAX}")
        try:
            self._client.transact_write_items(TransactItems=items)
        except ClientError as error:
            if error.response["Error"]["Code"] == "TransactionCanceledException":
                raise StoreError("another process changed something meanwhile: try again") from error
            raise StoreError(str(error)) from error
        except BotoCoreError as error:
            raise StoreError(str(error)) from error

    def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(TableName=self._table, **members)
        except (ClientError, BotoCoreError) as error:
            raise StoreError(f"DynamoDB, table {self._table}: {error}") from error
        return answer


def _key(path: str) -> Item:
    parent, _, name = path.rpartition("/")
    return {"parent": {"S": f"{RESOURCE}{parent}"}, "name": {"S": name}}


def _referring(target: str, path: str) -> Item:
    return {"parent": {"S": f"{REFERRING}{target}"}, "name": {"S": path}}


def _token(token: str) -> Item:
    return {"parent": {"S": f"{USED}{token}"}, "name": {"S": "token"}}


def _item(record: Record, refers_to: frozenset[str]) -> Item:
    item = _key(record.path) | {"record": {"B": msgspec.json.encode(record)}}
    if refers_to:
        item["refers_to"] = {"SS": sorted(refers_to)}
    return item


def _record(item: Item) -> Record:
    return msgspec.json.decode(item["record"]["B"], type=Record)
