"""Functions of the user's own, `FILE.py:FUNCTION`: builders, metrics, and loaders, which give the rows.

Guarantee: whatever goes wrong in the user's code, at import or in a call, a sys.exit too, is a RequestError with the
line of theirs; files beside theirs can be imported at any time, as if theirs were run.

A loader is called without arguments. It returns `rows.Data`, or a pair (x, y), or a triple (x, y, groups), or a dict of
arrays with the names of an npz.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from zlib import crc32

from edgewright_contracts.errors import EdgewrightError, RequestError
from edgewright_contracts.manifest import Task

from ..rows import Data
from .collection import Collection
from .tables import arrays_of

_INSTALLED: Final = ("site-packages", "dist-packages")
_imported: Final[dict[Path, set[Path]]] = {}  # by the user's file: what its code imported from its folder


def load_rows(place: str, task: Task) -> Data | Collection:
    """What the function returned. Raises RequestError for anything else, and for what it raises."""
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
    """The function that `FILE.py:NAME` names, guarded. Raises RequestError for no such file, name or function."""
    path, name = file_and_name(place)
    module = module_of(path)
    if not hasattr(module, name):
        near = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise RequestError(f"{path}: no {name!r} in it; it defines {', '.join(sorted(near)) or 'no function'}")
    found = getattr(module, name)
    if not callable(found):
        raise RequestError(f"{place}: expected a function, got {type(found).__name__}")
    return guarded(found, path)


def guarded(call: Callable[..., Any], file: Path) -> Callable[..., Any]:
    """`call` of the user's file, with the folder of the file on the path and its errors as RequestError."""

    @wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        with _in_code_of(file, f"{getattr(call, '__name__', 'its code')}() ", _did):
            return call(*args, **kwargs)

    return called


@contextmanager
def blamed(files: Iterable[Path]) -> Iterator[None]:
    """What is raised in one of these files of the user, or in what it calls, as RequestError with the line of theirs.

    For code that runs deep inside of other work, a loss or a forward, where `guarded` does not reach.
    """
    known = {str(file.resolve()) for file in files}
    try:
        yield
    except EdgewrightError:
        raise
    except (Exception, SystemExit) as error:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if str(Path(frame.filename).resolve()) in known:
                raise RequestError(f"{frame.filename}:{frame.lineno}: {frame.name}() {_did(error)}") from error
        raise


@contextmanager
def _in_code_of(file: Path, what: str, said: Callable[[BaseException], str]) -> Iterator[None]:
    folder = str(file.resolve().parent)
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    except EdgewrightError:
        raise  # says already what is wrong
    except (Exception, SystemExit) as error:
        raise RequestError(f"{line_of(error, file)}: {what}{said(error)}") from error
    finally:
        if folder in sys.path:  # the code may have taken it out
            sys.path.remove(folder)
        places = (getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before)
        paths = (Path(place).resolve() for place in places if place)
        _imported.setdefault(file.resolve(), set()).update(p for p in paths if _own(p, Path(folder)))


def imported(file: Path) -> frozenset[Path]:
    """Files below the folder of `file` that its code was the first to import, up to now."""
    return frozenset(_imported.get(file.resolve(), ()))


def _own(path: Path, folder: Path) -> bool:
    if not path.is_relative_to(folder):
        return False
    return not any(part in _INSTALLED or part.startswith(".") for part in path.relative_to(folder).parts)


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)})"
    said = str(error)
    return f"{type(error).__name__}{': ' if said else ''}{said}"


def _did(error: BaseException) -> str:
    return f"{'called' if isinstance(error, SystemExit) else 'raised'} {_said(error)}"


def line_of(error: BaseException, file: Path) -> str:
    """FILE:LINE of the innermost frame in the user's folder; the file when the error never reached one."""
    folder = file.resolve().parent
    if isinstance(error, SyntaxError) and error.filename and _own(Path(error.filename).resolve(), folder):
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".py") and _own(Path(frame.filename).resolve(), folder):
            return f"{frame.filename}:{frame.lineno}"
    return str(file)


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
    try:
        with _in_code_of(path, "does not import: ", _said):
            spec.loader.exec_module(module)
    except Exception:
        del sys.modules[name]
        raise
    return module
