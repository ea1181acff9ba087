"""What operators say of a device: where it stands, what it is, in which time zone it lives, tags of their own. Pure.

Values are words that a selector can name (`fleet.selectors`): nothing in them has a meaning there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from edgewright_contracts.errors import ContractError

from .selectors import TAG

TAGS: Final = 32  # of one device
_WORD: Final = re.compile(r"[^\x00-\x20,;!=*?\x7f]([^\x00-\x1f,;!=*?\x7f]*[^\x00-\x20,;!=*?\x7f])?")
_FIELDS: Final = {"site": "site", "hw": "hardware", "profile": "profile", "tz": "tz"}

Word = Annotated[str, msgspec.Meta(max_length=64)]


class Attributes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """ "" is what nobody has said. What is unknown in a stored document, of a newer release, is left alone."""

    site: Word = ""
    hardware: Word = ""
    profile: Word = ""  # of `edgewright compile --device`
    tz: Word = ""  # as Europe/Berlin
    tags: dict[str, Word] = {}


def changed(before: Attributes, pairs: Mapping[str, str]) -> Attributes:
    """With these said: site, hw, profile, tz or tag.NAME → a word; "" takes it back. Raises ContractError."""
    fields: dict[str, Any] = {}
    tags = dict(before.tags)
    for key, value in pairs.items():
        if value and not (len(value) <= 64 and _WORD.fullmatch(value)):
            raise ContractError(key, "at most 64 characters without , ; ! = * ?", repr(value[:80]))
        if key.startswith("tag.") and TAG.fullmatch(key.removeprefix("tag.")):
            tags[key.removeprefix("tag.")] = value
        elif key in _FIELDS:
            fields[_FIELDS[key]] = value
        else:
            raise ContractError("attribute", f"one of {', '.join(_FIELDS)}, tag.NAME", repr(key[:80]))
    if zone := fields.get("tz"):
        _known(zone)
    tags = {name: value for name, value in sorted(tags.items()) if value}
    if len(tags) > TAGS:
        raise ContractError("tag", f"at most {TAGS} of one device", str(len(tags)))
    return msgspec.structs.replace(before, **fields, tags=tags)


def shown(attributes: Attributes) -> dict[str, str]:
    """By the keys that they are set by, and only what is said."""
    found = {key: str(getattr(attributes, name)) for key, name in _FIELDS.items()}
    found |= {f"tag.{name}": value for name, value in attributes.tags.items()}
    return {key: value for key, value in found.items() if value}


def _known(zone: str) -> None:
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder
        raise ContractError("tz", "a time zone of the IANA database, as Europe/Berlin", repr(zone)) from None
