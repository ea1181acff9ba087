"""A recorded choice: choice.json, written, read, and asked whether it is for what is compiled now.

Handed in instead of measuring again, it makes a package anew, bit for bit, on a machine like the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Format

from ..disk import write_whole
from .choice import Arch, Choice, Limits, Purpose

_ANEW: Final = "or leave the recorded choice out (--choice), and it is made anew"
_PURPOSES: Final = {
    "recipe": ("another recipe or file, or other settings of it", "compile the one that it was made for"),
    "data": ("other data", "compile with those"),
    "device": ("another device", "name that one (--device)"),
    "seed": ("another seed", "give that one (--seed)"),
}


def recalled(choice: Choice, purpose: Purpose, archs: Sequence[Arch], formats: Sequence[Format]) -> Choice:
    """A recorded choice, for `formats` alone. `archs` are all that the recipe can make.

    Raises RequestError when it was made for another recipe, device, seed or data, does not say for which, or chooses
    what cannot be made.
    """
    if choice.purpose is None:
        raise RequestError(
            "the recorded choice does not say what it was made for: expected recipe, data, device and seed under "
            f"'purpose', got nothing; take the choice.json of a run, {_ANEW}"
        )
    for name, (what, way_out) in _PURPOSES.items():
        expected, got = (str(getattr(one, name)) for one in (purpose, choice.purpose))
        if expected != got:
            raise RequestError(
                f"the recorded choice was made for {what}: expected {expected:.16}, got {got:.16}; {way_out}, {_ANEW}"
            )
    if msgspec.structs.replace(choice.arch, qat=False) not in archs:
        known = ", ".join(arch.id for arch in archs)
        raise RequestError(
            f"the recorded choice is {choice.arch.id}: expected one of {known}; compile what it was made for, {_ANEW}"
        )
    left = {form: scheme for form, scheme in choice.chosen.items() if form in formats}
    if not left:
        has = ", ".join(choice.chosen) or "no format"
        raise RequestError(
            f"the recorded choice has {has}: expected {' or '.join(formats)}; name another --format, {_ANEW}"
        )
    return msgspec.structs.replace(choice, chosen=left)


def limits_of(recorded: Choice | None, asked: Limits) -> Limits:
    """The limits that hold: those of a recorded choice, which was made within them, or else those that are asked for.

    Raises RequestError when one that is asked for is not the recorded one; one that is left out is the recorded one.
    """
    if recorded is None:
        return asked
    found = []
    for name in Limits.__struct_fields__:
        held, wanted = getattr(recorded.limits, name), getattr(asked, name)
        if wanted is not None and wanted != held:
            had = "none" if held is None else f"{held:g}"
            found.append(f"--{name.replace('_', '-')}: expected {had}, got {wanted:g}")
    if found:
        raise RequestError(
            f"the recorded choice was made within other limits ({'; '.join(found)}): leave these limits out, and those "
            "that it was made within hold, or leave the recorded choice out (--choice), and one is made within yours"
        )
    return recorded.limits


def write_choice(choice: Choice, path: Path) -> None:
    write_whole(path, msgspec.json.format(msgspec.json.encode(choice, order="deterministic"), indent=1) + b"\n")


def read_choice(path: Path) -> Choice:
    """Raises RequestError for a file that is not there or is no choice."""
    try:
        choice = msgspec.json.decode(path.read_bytes(), type=built(Choice))
    except OSError as error:
        raise RequestError(f"{path}: expected a choice.json of an earlier run: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise RequestError(f"{path} is no choice.json of an earlier run: {error}") from None
    there = {(c.arch, c.format, c.scheme) for c in choice.candidates}
    for form, scheme in choice.chosen.items():
        if (choice.arch, form, scheme) not in there:
            raise RequestError(f"{path} chooses {choice.arch.id}/{scheme}, which is not among its candidates")
    return choice
