"""What is particular to a table: more than one process, many resources, and a table that is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routing.mesh.api.dynamodb_store import DynamoDbStore
from routing.mesh.api.store import Record, StoreError
from tests.support.dynamodb import dynamodb_server, made_table


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with dynamodb_server() as found:
        yield found


def store(url: str, table: str) -> DynamoDbStore:
    return DynamoDbStore(table, region="us-east-1", endpoint=url)


def record(path: str) -> Record:
    parent, _, name = path.rpartition("/")
    return Record(
        path=path, parent=parent, name=name, uid="u", version=1, created_s=1, updated_s=1, spec={}, tags={}
    )


def test_of_two_processes_that_change_something_at_once_one_has_to_try_again(url: str) -> None:
    table = made_table(url)
    one, two = store(url, table), store(url, table)

    def first_of_two() -> None:
        with one.transaction():
            assert one.get("mesh/shop") is None
            with two.transaction():
                two.put(record("mesh/shop"), frozenset())
            one.put(record("mesh/shop"), frozenset())

    with pytest.raises(StoreError, match="try again"):
        first_of_two()
    assert two.revision() == one.revision() == 1
    with one.transaction():
        assert one.get("mesh/shop") == record("mesh/shop")


def test_a_transaction_that_fails_leaves_nothing(url: str) -> None:
    made = store(url, made_table(url))

    def fails() -> None:
        with made.transaction():
            made.put(record("mesh/shop"), frozenset())
            assert made.get("mesh/shop") is not None
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert made.all() == []
    assert made.revision() == 0


def test_who_reads_only_writes_nothing(url: str) -> None:
    made = store(url, made_table(url))
    with made.transaction():
        assert made.page("mesh", "", 10) == []
    assert made.revision() == 0


def test_references_are_of_the_last_version(url: str) -> None:
    made = store(url, made_table(url))
    service, node, other = "mesh/m/virtualService/s", "mesh/m/virtualNode/n", "mesh/m/virtualNode/o"
    with made.transaction():
        made.put(record(service), frozenset({node}))
    assert (made.user_of(node), made.user_of(other)) == (service, None)
    with made.transaction():
        made.put(record(service), frozenset({other}))
    assert (made.user_of(node), made.user_of(other)) == (None, service)
    with made.transaction():
        made.delete(service)
    assert made.user_of(other) is None


def test_pages_and_counts_go_on_where_an_answer_ends(url: str) -> None:
    made = store(url, made_table(url))
    paths = [f"mesh/m/virtualNode/n{number:03}" for number in range(40)]
    for at in range(0, 40, 20):
        with made.transaction():
            for path in paths[at : at + 20]:
                made.put(record(path), frozenset())
    assert made.count("mesh/m/virtualNode") == 40
    assert [each.path for each in made.page("mesh/m/virtualNode", "n009", 25)] == paths[10:35]
    assert [each.path for each in made.all()] == paths
    assert made.user_of("mesh/m") == paths[0]


def test_a_table_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(StoreError, match=r"table nowhere: .*ResourceNotFoundException"):
        store(url, "nowhere")
    with pytest.raises(StoreError, match="Could not connect"):
        store("http://127.0.0.1:1", "nowhere")
