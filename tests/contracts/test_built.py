"""Types that several threads decode for the first time at once; and that nothing decodes past `built`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewright_contracts.built import built

ROOT = Path(__file__).parents[2]
SOURCES = ("contracts", "runtime", "devices", "models", "compiler", "agent", "hub", "cli")
PLAIN = ("str", "dict[str, Any]", "tuple[int, int, list[Any]]")  # without a struct, so without a description

# A struct of many fields takes long to describe; the shortest turns let another thread in at every field. Without
# `built` the process died in each of six tries.
RACE = """
import sys, threading
import msgspec
from edgewright_contracts.built import built

FIELDS = "\\n".join(f"    f{i}: dict[str, tuple[int, ...]] | None = None" for i in range(30))
KINDS = f"import msgspec\\nclass Inner(msgspec.Struct):\\n{FIELDS}\\nclass Outer(msgspec.Struct):\\n    one: Inner\\n"
DATA = b'{"one":{"f0":{"x":[1]},"f29":{"x":[2]}}}'


def decode(start, kind):
    start.wait()
    for _ in range(50):
        msgspec.json.decode(DATA, type=built(kind))


sys.setswitchinterval(1e-6)
for _ in range(40):
    names = {}
    exec(KINDS, names)
    start = threading.Barrier(3)
    threads = [threading.Thread(target=decode, args=(start, names["Outer"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_decode_a_new_struct_at_once_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_be_decoded_is_told_and_does_not_block_others() -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="not supported"):
            built(dict[bytearray, int] | dict[str, int])
    assert built(dict[str, int]) == dict[str, int]


def test_every_typed_decoding_goes_through_built() -> None:
    """What does not can kill a process that has threads, once in thousands of starts."""
    found = [
        f"{file.relative_to(ROOT)}:{line}: {kind}"
        for part in SOURCES
        for file in (ROOT / part).rglob("*.py")
        if file.name != "built.py" and "msgspec" in (text := file.read_text())
        for line, kind in _decoded(ast.parse(text))
        if not kind.startswith("built(") and kind not in PLAIN
    ]
    assert found == []


def _decoded(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the type of each call of msgspec's that decodes something typed."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name in ("msgspec.json.decode", "msgspec.msgpack.decode", "codec.decode"):
            kinds = [k.value for k in call.keywords if k.arg == "type"]
        elif name in ("msgspec.convert", "msgspec.json.Decoder", "msgspec.msgpack.Decoder"):
            kinds = call.args[name == "msgspec.convert" :][:1] + [k.value for k in call.keywords if k.arg == "type"]
        else:
            continue
        yield from ((call.lineno, ast.unparse(kind)) for kind in kinds)
