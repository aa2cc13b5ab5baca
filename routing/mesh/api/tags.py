"""Tags of a resource: checked, added, removed."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from routing.mesh.api.errors import ApiError, bad
from routing.mesh.model.shape import Shape

TAGS_MAX: Final = 50
RESERVED: Final = "aws:"
TagKey = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Tag(Shape, frozen=True, kw_only=True):
    """A tag."""

    key: TagKey
    value: Annotated[str, msgspec.Meta(max_length=256)]


def tagged(before: dict[str, str], tags: list[Tag]) -> dict[str, str]:
    """Return the tags of a resource with some more; raises `ApiError`."""
    names = [tag.key for tag in tags]
    for name in names:
        if names.count(name) > 1:
            raise bad("tags", f"the key {name} is there twice")
        if name.lower().startswith(RESERVED):
            raise bad("tags", f"the key {name} begins with {RESERVED}, which is reserved")
    made = before | {tag.key: tag.value for tag in tags}
    if len(made) > TAGS_MAX:
        raise ApiError("TooManyTagsException", f"a resource has at most {TAGS_MAX} tags, not {len(made)}")
    return made


def untagged(before: dict[str, str], keys: list[str]) -> dict[str, str]:
    """Return the tags of a resource without some."""
    return {key: value for key, value in before.items() if key not in keys}
