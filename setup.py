"""Compiles the hot modules with mypyc where HEADWORKS_COMPILE=1 is set (decision 0012).

Everything else about the package is in pyproject.toml. What is compiled is what runs once a message; the same
files are plain Python without a compiler.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

HOT = [
    "runtime/clock.py",
    "ingest/delivery/kinesis/aggregation.py",
    "ingest/delivery/kinesis/lane.py",
    "ingest/delivery/kinesis/sink.py",
    "ingest/mqtt/connection.py",
    "ingest/mqtt/sockets.py",
    "ingest/order.py",
    "ingest/pipeline.py",
    "ingest/spool/group.py",
    "ingest/spool/spool.py",
    "protocols/mqtt/session.py",
    "protocols/mqtt/wire.py",
    "protocols/websocket.py",
    "routing/limits/allowance.py",
    "routing/limits/bucket.py",
]


def extensions() -> list[Extension]:
    """Return what is to be compiled."""
    if os.environ.get("HEADWORKS_COMPILE") != "1":
        return []
    from mypyc.build import mypycify  # noqa: PLC0415  # a build dependency of compiled builds only

    made: list[Extension] = mypycify(["--config-file=pyproject.toml", *HOT], opt_level="3", debug_level="1")
    return made


setup(ext_modules=extensions())
