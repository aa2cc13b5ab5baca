from __future__ import annotations

import os
import time

from runtime import clock


def test_unix_time_is_the_same_in_both_units() -> None:
    before_ns = time.time_ns()
    seconds, milliseconds = clock.unix_s(), clock.unix_ms()
    after_ns = time.time_ns()
    assert before_ns / 1e9 <= seconds <= after_ns / 1e9
    assert before_ns // 1_000_000 <= milliseconds <= after_ns // 1_000_000


def test_monotonic_time_is_that_of_the_machine_and_not_of_the_process() -> None:
    reader, writer = os.pipe()
    before_s = clock.monotonic_s()
    pid = os.fork()
    if not pid:
        os.write(writer, repr(clock.monotonic_s()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    in_the_child_s = float(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    assert before_s <= in_the_child_s <= clock.monotonic_s()
