"""Lines of a bulk import, as NDJSON or CSV, to devices. Pure.

- NDJSON: `{"device": "pump-1", "attributes": {"model": "X"}, "groups": ["roof"]}`; only `device` is required.
- CSV: the first line names the columns: `device`, `groups` (names with `;` between), all others are
  attributes. A field may be in quotes, but not over several lines. An empty field is an attribute that the
  device does not have.
"""

from __future__ import annotations

import csv
from typing import Final, Literal

import msgspec

from services.device.resources import Attributes, Names, refuse_large_attributes
from services.web import decoding
from services.web.operations import NAME
from services.web.refusal import Refused

Form = Literal["ndjson", "csv"]
LINE_BYTES_MAX: Final = 16_384
COLUMNS_MAX: Final = 66


class ImportLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device to import; attributes or groups that are not given stay as they are."""

    device: Names
    attributes: Attributes | None = None
    groups: list[Names] | None = None


class BadLine(Exception):
    """A line cannot be taken; the text says why."""


def parse(form: Form, columns: list[str], line: bytes) -> ImportLine:
    """Return what a line says; raises `BadLine`."""
    if len(line) > LINE_BYTES_MAX:
        raise BadLine(f"longer than {LINE_BYTES_MAX} bytes")
    try:
        if form == "ndjson":
            found = _DECODER.decode(line)
        else:
            found = msgspec.convert(_record(columns, line), ImportLine)
        refuse_large_attributes(found.attributes or {})
    except msgspec.ValidationError as error:
        raise BadLine(decoding.said(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine("not JSON" if form == "ndjson" else "not UTF-8") from error
    except Refused as refused:
        raise BadLine(refused.detail) from refused
    if found.device in {".", ".."}:
        raise BadLine(f"device: does not match {NAME}")
    return found


def columns_of(line: bytes) -> list[str]:
    """Return the columns that the first line of a CSV file names; raises `BadLine`."""
    columns = [column.strip() for column in _fields(line.removeprefix(b"\xef\xbb\xbf"))]
    if "device" not in columns:
        raise BadLine("the first line must name the columns, device among them")
    if len(set(columns)) != len(columns) or "" in columns:
        raise BadLine("a column has no name, or two have the same")
    if len(columns) > COLUMNS_MAX:
        raise BadLine(f"more than {COLUMNS_MAX} columns")
    return columns


def _record(columns: list[str], line: bytes) -> dict[str, object]:
    fields = _fields(line)
    if len(fields) != len(columns):
        raise BadLine(f"{len(fields)} fields for {len(columns)} columns")
    row = dict(zip(columns, fields, strict=True))
    device, groups = row.pop("device"), row.pop("groups", None)
    record: dict[str, object] = {"device": device.strip()}
    if groups is not None:
        record["groups"] = [group.strip() for group in groups.split(";") if group.strip()]
    if row:
        record["attributes"] = {name: value for name, value in row.items() if value}
    return record


def _fields(line: bytes) -> list[str]:
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8") from error
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise BadLine(f"not CSV: {error}") from error


_DECODER: Final = msgspec.json.Decoder(ImportLine)
