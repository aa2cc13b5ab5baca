"""Settings files: TOML, decoded into frozen structs; what is not known is an error with its line.

A file is checked in three steps: keys that no struct has, values that no field takes, and what no single
field can know, for which the caller gives `check`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

SettingsT = TypeVar("SettingsT", bound=msgspec.Struct)


class SettingsError(Exception):
    """The settings are wrong; the text names the file, the line and what to do."""


Wrong = Callable[[str, str], SettingsError]
"""Makes the error of a key, as in `raise wrong("sink.kind", "kinesis needs sink.stream")`."""
Check = Callable[[SettingsT, Wrong], None]
"""Raises what its `Wrong` returns when fields do not go together."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What sections derive from."""


def load(
    path: Path, struct: type[SettingsT], *, check: Check[SettingsT], overrides: Sequence[str] = ()
) -> SettingsT:
    """Read and check a file; raises `SettingsError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        raise SettingsError(f"{path}:{f'{at[1]}: ' if at else ' '}not TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    return parse(data, struct, check=check, source=str(path), text=text)


def parse(
    data: dict[str, Any], struct: type[SettingsT], *, check: Check[SettingsT], source: str, text: str
) -> SettingsT:
    """Check settings that were read from `source`, whose `text` is searched for the line of an error."""
    _refuse_unknown(struct, data, "", source, text)

    def wrong(key: str, why: str) -> SettingsError:
        return SettingsError(f"{_place(source, text, key)}{key}: {why}")

    try:
        settings = msgspec.convert(data, struct)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$.")
        key = _named(data, struct, key)
        raise wrong(key, f"{message[0].lower()}{message[1:]}") from error
    check(settings, wrong)
    return settings


def _named(data: dict[str, Any], struct: type[msgspec.Struct], key: str) -> str:
    """Name the first entry of a table of tables that is wrong, which msgspec calls `section[...]`."""
    section, found, _ = key.partition("[...]")
    if not found or "." in section:
        return key
    kind = msgspec.structs.fields(struct)
    [entry] = [field.type.__args__[1] for field in kind if field.encode_name == section]
    for name, value in data[section].items():
        try:
            msgspec.convert(value, entry)
        except msgspec.ValidationError:
            return key.replace("[...]", f".{name}", 1)
    return key


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `--set a.b=value`; the value is TOML, or text if it is none."""
    path, equals, raw = override.partition("=")
    if not equals or not path:
        raise SettingsError(f"--set {override}: write it as section.key=value")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw
    *parents, last = path.split(".")
    target: Any = data
    for parent in parents:
        if isinstance(target, list):
            target = target[int(parent)] if parent.isdecimal() and int(parent) < len(target) else None
        else:
            target = target.setdefault(parent, {})
        if not isinstance(target, dict | list):
            raise SettingsError(f"--set {override}: {parent} is not a section")
    if isinstance(target, list):
        raise SettingsError(f"--set {override}: name the field of an entry, as in listeners.0.bind")
    target[last] = value


def _refuse_unknown(struct: type[msgspec.Struct], data: Any, path: str, source: str, text: str) -> None:
    """Refuse keys that no struct has, with the nearest one that does."""
    if not isinstance(data, dict):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in data.items():
        where = f"{path}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(fields)}"
            raise SettingsError(f"{_place(source, text, where)}{where}: unknown setting{hint}")
        for inner, items in _inner(fields[key], value, where):
            _refuse_unknown(inner, items[1], items[0], source, text)


def _inner(kind: Any, value: Any, where: str) -> list[tuple[type[msgspec.Struct], tuple[str, Any]]]:
    """Return the structs inside a field with (path, data) of each."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [(kind, (f"{where}.", value))]
    arguments = getattr(kind, "__args__", ())
    struct = arguments[-1] if arguments else None
    if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)):
        return []
    if isinstance(value, dict):
        return [(struct, (f"{where}.{name}.", item)) for name, item in value.items()]
    if isinstance(value, list):
        return [(struct, (f"{where}[{position}].", item)) for position, item in enumerate(value)]
    return []


def _place(source: str, text: str, path: str) -> str:
    """Return `source:line: ` of a key, or of what it is in: its section, its entry, the inline table."""
    parts = re.split(r"[.\[]", path)
    section, key = parts[0], parts[-1]
    names = [part for part in parts if not part.endswith("]")]
    wanted = int(number[-1]) if (number := re.findall(r"\[(\d+)\]", path)) else 0
    seen, inside, near = -1, len(parts) == 1, 0
    for line, content in enumerate(text.splitlines(), start=1):
        head = re.match(r"\s*(\[+)\s*([^\]]+?)\s*\]+", content)
        if head:
            name = head.group(2).replace('"', "")
            if name == ".".join(names) and len(parts) > 1 and not number:
                return f"{source}:{line}: "
            if name == section and len(head.group(1)) == 2:
                seen += 1
            inside = name.split(".")[0] == section and (not number or seen == wanted)
            if inside and len(parts) > 2 and not number:
                inside = name == ".".join(parts[:-1])
            if inside and (not near or name == ".".join(names[:-1])):
                near = line
        elif inside and (assigned := re.match(r"\s*\"?([\w-]+)\"?\s*=", content)):
            if assigned[1] == key:
                return f"{source}:{line}: "
            if assigned[1] in names[1:]:
                near = line
    return f"{source}:{near}: " if near else f"{source}: "


def split_bind(bind: str) -> tuple[str, int]:
    """Return (host, port) of `host:port` or `[v6]:port`; raises ValueError."""
    host, colon, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{bind!r} is not host:port")
    return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)), int(port)
