"""The shadow of a device: how a patch changes it, and what of the desired state the device has not reported.

Pure. Limits: `DEPTH_MAX` levels of objects and lists; the size of a state is the caller's to check, with
`size`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

DEPTH_MAX: Final = 8


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` as a JSON merge patch changes it (RFC 7396, 2); neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def delta(desired: dict[str, Any], reported: dict[str, Any]) -> dict[str, Any]:
    """Return what of `desired` is missing or different in `reported`.

    As a merge patch on `reported` it brings about all that is desired; what is reported and not desired
    stays.
    """
    found = {}
    for key, wanted in desired.items():
        if key not in reported:
            found[key] = wanted
        elif isinstance(wanted, dict) and isinstance(reported[key], dict):
            if inner := delta(wanted, reported[key]):
                found[key] = inner
        elif not same(wanted, reported[key]):
            found[key] = wanted
    return found


def same(left: Any, right: Any) -> bool:
    """Return whether two JSON values are equal; to Python, true would be 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def too_deep(value: Any) -> bool:
    """Return whether a value has more than `DEPTH_MAX` levels."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in level)


def size(state: dict[str, Any]) -> int:
    """Return how many bytes a state has as JSON."""
    return len(msgspec.json.encode(state))
