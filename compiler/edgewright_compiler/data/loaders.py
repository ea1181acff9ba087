"""A function of the user's own that gives the rows: `FILE.py:FUNCTION`, called without arguments.

It returns `rows.Data`, or a pair (x, y), or a triple (x, y, groups), or a dict of arrays with the names of an npz.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

from ..rows import Data
from .collection import Collection
from .tables import arrays_of


def load_rows(place: str, task: Task) -> Data | Collection:
    """What the function returned. Raises RequestError for anything else; what it raises passes through."""
    found: Any = function(place)()
    if isinstance(found, Data):
        return found
    if isinstance(found, tuple) and len(found) in (2, 3):
        found = dict(zip(("x", "y", "groups"), found, strict=False))
    if not isinstance(found, dict):
        raise RequestError(
            f"{place}: expected Data, (x, y), (x, y, groups) or a dict of arrays, got {type(found).__name__}"
        )
    return arrays_of(found, task, place)


def function(place: str) -> Any:
    """The function that `FILE.py:NAME` names. Raises RequestError for no such file, no such name, or no function."""
    path, name = file_and_name(place)
    module = module_of(path)
    if not hasattr(module, name):
        near = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise RequestError(f"{path}: no {name!r} in it; it defines {', '.join(sorted(near)) or 'no function'}")
    found = getattr(module, name)
    if not callable(found):
        raise RequestError(f"{place}: expected a function, got {type(found).__name__}")
    return found


def file_and_name(place: str) -> tuple[Path, str]:
    path, colon, name = place.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise RequestError(f"expected FILE.py:FUNCTION, got {place!r}")
    if not Path(path).is_file():
        raise RequestError(f"{path}: no such file; expected the Python file that defines {name!r}")
    return Path(path), name


def module_of(path: Path) -> ModuleType:
    """The file as a module, imported once; files beside it can be imported by it, as if it were run."""
    whole = path.resolve()
    name = f"edgewright_own_{crc32(str(whole).encode()):08x}_{whole.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(whole.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError(f"{path}: does not import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(whole.parent))
    return module
