from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from routing.limits import shared_table
from routing.limits.shared_table import (
    PROBES,
    STRIPES,
    Expired,
    LocalTable,
    SharedTable,
    Table,
    TableFullError,
)

VALUE_BYTES = 16
EXPIRED = b"x" * VALUE_BYTES


def key_of(home: int, number: int) -> bytes:
    return home.to_bytes(8, "little") + number.to_bytes(8, "little")


def value_of(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2


def never(value: bytes) -> bool:
    del value
    return False


def is_expired(value: bytes) -> bool:
    return value == EXPIRED


class Making:
    """Makes tables that share one lock file."""

    def __init__(self, lock_fd: int) -> None:
        self._lock_fd = lock_fd

    def shared(self, capacity: int, expired: Expired = never) -> SharedTable:
        return SharedTable(
            memoryview(mmap.mmap(-1, SharedTable.size(VALUE_BYTES, capacity))),
            value_bytes=VALUE_BYTES,
            capacity=capacity,
            lock_fd=self._lock_fd,
            lock_start=1,
            expired=expired,
        )


@pytest.fixture(scope="module")
def making(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Making]:
    path: Path = tmp_path_factory.mktemp("locks") / "node.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    yield Making(fd)
    os.close(fd)


@pytest.fixture(params=["local", "shared"])
def make(request: pytest.FixtureRequest, making: Making) -> Callable[[int, Expired], Table]:
    if request.param == "local":
        return lambda capacity, expired: LocalTable(capacity=capacity, expired=expired)
    return making.shared


def fork(main: Callable[[], None]) -> int:
    """Run `main` in a child; its exit code is 0 only when it returned."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        main()
        code = 0
    except BaseException:  # noqa: BLE001  # a child of a test must not go on as a second pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_record_is_found_replaced_and_forgotten(make: Callable[[int, Expired], Table]) -> None:
    table = make(8, never)
    key = key_of(3, 1)
    with table.locked(key):
        assert table.get(key) is None
        table.put(key, value_of(1))
        assert table.get(key) == value_of(1)
        table.put(key, value_of(2))
        assert table.get(key) == value_of(2)
        assert list(table.items()) == [(key, value_of(2))]
        table.remove(key)
        assert table.get(key) is None
        table.remove(key)
    assert list(table.items()) == []


def test_a_lock_takes_hashes_of_sixteen_bytes_only(make: Callable[[int, Expired], Table]) -> None:
    with pytest.raises(AssertionError):
        make(8, never).locked(b"short")


def test_a_full_table_refuses_a_new_key_and_still_replaces_an_old_one(
    make: Callable[[int, Expired], Table],
) -> None:
    table = make(PROBES, never)
    keys = [key_of(0, number) for number in range(PROBES)]
    for key in keys:
        table.put(key, value_of(1))
    with pytest.raises(TableFullError):
        table.put(key_of(0, 999), value_of(1))
    table.put(keys[7], value_of(2))
    assert [table.get(key) for key in keys].count(value_of(1)) == PROBES - 1


def test_an_expired_record_makes_room(make: Callable[[int, Expired], Table]) -> None:
    table = make(PROBES, is_expired)
    keys = [key_of(0, number) for number in range(PROBES)]
    for key in keys:
        table.put(key, value_of(1))
    table.put(keys[40], EXPIRED)
    table.put(key_of(0, 999), value_of(3))
    assert table.get(key_of(0, 999)) == value_of(3)
    assert table.get(keys[40]) is None
    assert sum(table.get(key) == value_of(1) for key in keys) == PROBES - 1


@pytest.mark.parametrize("capacity", [1, 40, 2000])
def test_as_many_records_as_the_capacity_fit(making: Making, capacity: int) -> None:
    table = making.shared(capacity)
    for number in range(capacity):
        scattered = (number * 0x9E3779B97F4A7C15) % (1 << 64)
        table.put(key_of(scattered, number), value_of(number))
    assert len(list(table.items())) == capacity


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "get"]), st.integers(0, 5), st.integers(0, 40)), max_size=120
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_any_sequence_does_what_a_dict_does(making: Making, steps: list[tuple[str, int, int]]) -> None:
    table = making.shared(4)
    model: dict[bytes, bytes] = {}
    for number, (step, home, name) in enumerate(steps):
        key = key_of(home, name)
        match step:
            case "put":
                try:
                    table.put(key, value_of(number))
                except TableFullError:
                    assert key not in model
                    assert len(model) >= PROBES
                else:
                    model[key] = value_of(number)
            case "remove":
                table.remove(key)
                model.pop(key, None)
            case _:
                assert table.get(key) == model.get(key)
    assert dict(table.items()) == model


@hypothesis_settings(max_examples=60, deadline=None)
@given(homes=st.lists(st.integers(0, 30), max_size=60), order=st.randoms(use_true_random=False))
def test_a_table_that_was_emptied_has_no_used_slot_left(making: Making, homes: list[int], order: Any) -> None:
    table = making.shared(20)
    keys = [key_of(home, number) for number, home in enumerate(homes)]
    for key in keys:
        table.put(key, value_of(1))
    order.shuffle(keys)
    for key in keys:
        table.remove(key)
    kinds = [state & shared_table.KIND for state in table._words[:: table._step].tolist()]
    assert set(kinds) == {shared_table.FREE}


@given(
    capacity=st.integers(1, 300_000),
    low=st.integers(0, (1 << 64) - 1),
    apart=st.integers(0, PROBES),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_keys_that_can_meet_in_a_slot_exclude_each_other(
    making: Making, capacity: int, low: int, apart: int
) -> None:
    table = making.shared(capacity)
    first = low % table._homes
    second = min(first + apart, table._homes - 1)
    locks = [table.locked(key_of(home, 0)) for home in (first, second)]
    starts = [lock._start for lock in locks if isinstance(lock, shared_table._Stripe)]
    assert abs(starts[0] - starts[1]) < 2, "a lock is two bytes long"
    assert all(start in range(1, STRIPES) for start in starts)
    # Every slot that the first key can be in, and the one behind, is in its two stripes.
    stripe = first // table._stripe_slots
    assert first + PROBES < (stripe + 2) * table._stripe_slots + 1


def test_a_lock_holds_its_stripe_and_the_next(making: Making) -> None:
    table = making.shared(4 * PROBES)
    home = 2 * PROBES
    lock = table.locked(key_of(home, 0))
    assert isinstance(lock, shared_table._Stripe)

    def try_the_bytes() -> None:
        for offset in (0, 1):
            with pytest.raises(BlockingIOError):
                fcntl.lockf(lock._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, lock._start + offset)
        for offset in (-1, 2):
            fcntl.lockf(lock._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, lock._start + offset)

    with lock:
        assert exit_code(fork(try_the_bytes)) == 0


def test_a_replacement_does_not_touch_the_value_that_counts(making: Making) -> None:
    table = making.shared(1)
    key = key_of(0, 1)
    for number in range(1, 6):
        table.put(key, value_of(number))
        held = bytes(table._buffer)
        table.put(key, value_of(number + 1))
        assert value_of(number) in held
        assert value_of(number) in bytes(table._buffer), "a kill within the copy would have torn it"


class _Killed(BaseException):
    pass


def cut_short(call: Callable[[], None], line: int) -> bool:
    """Stop `call` before its `line`-th line of the table's module; return whether it had so many."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        del argument
        if frame.f_code.co_filename != shared_table.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise _Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except _Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_replacement_that_is_cut_short_anywhere_leaves_the_old_value_or_the_new(making: Making) -> None:
    key = key_of(5, 1)
    seen = set()
    line = 1
    while True:
        table = making.shared(4)
        table.put(key, value_of(1))
        table.put(key, value_of(2))
        cut = cut_short(lambda table=table: table.put(key, value_of(3)), line)  # type: ignore[misc]
        seen.add(table.get(key))
        if not cut:
            break
        line += 1
    assert seen == {value_of(2), value_of(3)}
    assert line > 10


def test_an_eviction_that_is_cut_short_anywhere_gives_no_key_the_value_of_another(making: Making) -> None:
    old, new = key_of(0, 0), key_of(0, 999)
    seen = set()
    line = 1
    while True:
        table = making.shared(1, is_expired)
        table.put(old, EXPIRED)
        for number in range(1, PROBES):
            table.put(key_of(0, number), value_of(number))
        cut = cut_short(lambda table=table: table.put(new, value_of(7)), line)  # type: ignore[misc]
        seen.add((table.get(old), table.get(new)))
        assert all(table.get(key_of(0, number)) == value_of(number) for number in range(1, PROBES))
        table.put(new, value_of(8))
        assert table.get(new) == value_of(8), "what was left over can be used"
        if not cut:
            break
        line += 1
    assert seen == {(EXPIRED, None), (None, None), (None, value_of(7))}


def test_processes_that_count_in_one_record_lose_no_count(making: Making) -> None:
    table = making.shared(4)
    key = key_of(1, 1)
    rounds, processes = 2000, 3

    def count() -> None:
        for _ in range(rounds):
            with table.locked(key):
                held = table.get(key)
                number = 0 if held is None else int.from_bytes(held[:8], "little")
                table.put(key, value_of(number + 1))

    pids = [fork(count) for _ in range(processes)]
    assert [exit_code(pid) for pid in pids] == [0] * processes
    assert table.get(key) == value_of(rounds * processes)


def test_processes_that_enter_neighbouring_keys_lose_none(making: Making) -> None:
    each, processes = 150, 3
    table = making.shared(each * processes)

    def enter(process: int) -> None:
        for number in range(each):
            key = key_of(number * 2, process)
            with table.locked(key):
                table.put(key, value_of(number))
            if number % 3 == 0:
                with table.locked(key):
                    table.remove(key)

    pids = [fork(lambda process=process: enter(process)) for process in range(processes)]  # type: ignore[misc]
    assert [exit_code(pid) for pid in pids] == [0] * processes
    expected = {
        key_of(number * 2, process): value_of(number)
        for process in range(processes)
        for number in range(each)
        if number % 3
    }
    assert dict(table.items()) == expected


@pytest.mark.crash
def test_a_killed_writer_leaves_whole_records_and_no_lock(making: Making) -> None:
    table = making.shared(PROBES)
    keys = [key_of(0, number) for number in range(8)]

    def write(ready: int) -> None:
        number = 0
        while True:
            for key in keys:
                number += 1
                with table.locked(key):
                    table.put(key, value_of(number))
                    if number % 5 == 0:
                        table.remove(key)
            if number == len(keys):
                os.write(ready, b"x")

    for round_number in range(40):
        reader, writer = os.pipe()
        pid = fork(lambda writer=writer: write(writer))  # type: ignore[misc]
        os.read(reader, 1)
        for _ in range(round_number * 20):  # readers without the lock never see half a value
            for key in keys:
                value = table.get(key)
                assert value is None or value[:8] == value[8:]
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        os.close(reader)
        os.close(writer)
        for key in keys:
            with table.locked(key):  # would wait for ever for a lock that outlived its holder
                value = table.get(key)
                assert value is None or value[:8] == value[8:]
                table.put(key, value_of(round_number))
                assert table.get(key) == value_of(round_number)
