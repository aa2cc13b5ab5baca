"""What the kernel says of memory and CPU. Sizes are bytes, times seconds of CPU."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

KERNEL_FIELDS: Final = ("Slab", "KernelStack", "PageTables", "Percpu")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Snapshot(msgspec.Struct, frozen=True):
    """The memory of a moment: of two groups of processes (PSS), of the kernel, and what is left."""

    gateway: int
    generators: int
    kernel: int
    available: int


class Cpu(msgspec.Struct, frozen=True):
    """CPU that was used up to a moment: of two groups of processes, and all that the machine was busy."""

    at_s: float
    gateway_s: float
    generators_s: float
    busy_s: float


def raise_descriptors() -> int:
    """Raise the soft limit of descriptors to the hard one, for us and our children; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(int(child) for child in children.split())]


def pss(pids: Iterable[int]) -> int:
    """Return the proportional set size of processes together: shared pages count once."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids)


def kernel_bytes() -> int:
    """Return what the kernel has for its objects and for socket buffers."""
    meminfo = Path("/proc/meminfo")
    buffers = 0
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            buffers = int(words[words.index("mem") + 1]) * PAGE_BYTES
    return sum(_field(meminfo, field) for field in KERNEL_FIELDS) + buffers


def snapshot(gateway: Iterable[int], generators: Iterable[int]) -> Snapshot:
    """Measure the memory of now."""
    available = _field(Path("/proc/meminfo"), "MemAvailable")
    return Snapshot(pss(gateway), pss(generators), kernel_bytes(), available)


def cpu(now_s: float, gateway: Iterable[int], generators: Iterable[int]) -> Cpu:
    """Measure the CPU used until now."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = words[3] + words[4]
    return Cpu(now_s, _cpu_s(gateway), _cpu_s(generators), (sum(words[:8]) - idle) / TICKS_PER_S)


def _cpu_s(pids: Iterable[int]) -> float:
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def _field(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
