"""Preprocessing of one's own: exported with the net, or declared as the application's and held to golden vectors."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.main import run
from edgewright_compiler.graph.blocks.text import encoded
from edgewright_compiler.own.host import HostRecipe
from edgewright_compiler.own.recipe import own_recipe
from edgewright_contracts.errors import RequestError
from edgewright_contracts.package import read_package
from edgewright_runtime.golden import GOLDEN_FILE, read_golden
from edgewright_runtime.runtime import open_session

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-model.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

NET = """
import numpy as np
from torch import nn
def build(classes):
    return nn.Sequential(nn.Embedding(300, 4), nn.Flatten(), nn.LazyLinear(classes))
"""
LETTERS = NET + "def host(rows):\n    return (rows | 32).astype(np.int32)\n"  # capitals and small letters are the same
TEXTS = [f"{'up' if i % 2 else 'down'} {i:03d}" for i in range(60)]


def page_files(directory: Path, *names: str) -> None:
    for language, body in BLOCKS:
        name = body.splitlines()[0].removeprefix("# ")
        if language == "python" and name in names:
            (directory / name).write_text(body)


def texts(directory: Path, *lines: str, **more: object) -> Path:
    lines = lines or tuple(TEXTS)
    arrays = {"x": encoded(lines, 8), "y": np.array([line[0].lower() for line in lines]), **more}
    np.savez(directory / "texts.npz", **arrays)  # type: ignore[arg-type]
    return directory / "texts.npz"


def made(directory: Path, code: str, data: Path | str):
    (directory / "mine.py").write_text(code)
    return own_recipe(f"{directory / 'mine.py'}:build", data, task="classify")


def test_a_front_of_the_page_letterboxes_frames_in_the_graph(tmp_path):
    page_files(tmp_path, "mymodel.py", "frames.py")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "f.npz", x=rng.integers(0, 255, (60, 12, 16), np.uint8), y=np.arange(60) % 2)
    recipe = own_recipe(f"{tmp_path / 'frames.py'}:build", tmp_path / "f.npz", task="classify")
    assert not isinstance(recipe, HostRecipe)
    assert recipe.input.shape == (12, 16)
    assert recipe.augment is not None
    seen = recipe.front(recipe.data())(torch.from_numpy(recipe.data().train.inputs["image"]))
    assert seen.shape[1:] == (1, 8, 8)
    assert not seen[:, :, (0, 7)].any(), "borders above and below"
    assert seen[:, :, 1:7].std() > 0.3


def test_rows_are_what_the_host_makes_and_vectors_are_of_held_out_samples(tmp_path):
    data = texts(tmp_path)
    recipe = made(tmp_path, LETTERS, data)
    assert isinstance(recipe, HostRecipe)
    assert (recipe.input.name, recipe.input.dtype, recipe.input.shape) == ("tokens", "int32", (8,))
    assert recipe.statistics == "tokens"
    assert "`tokens` int32 [8] of a sample `text` uint8 [8] as host(rows) of mine.py does" in "".join(recipe.notes)
    with np.load(io.BytesIO(recipe.golden)) as vectors:
        raw, tensor = vectors["raw:text"], vectors["tensor:tokens"]
    np.testing.assert_array_equal(tensor, recipe.data().validation.inputs["tokens"])
    np.testing.assert_array_equal(raw | 32, tensor)
    assert recipe.golden == made(tmp_path, LETTERS, data).golden


def test_samples_that_the_host_makes_the_same_of_stay_on_one_side(tmp_path):
    twice = [text.upper() for text in TEXTS]
    rows = made(tmp_path, LETTERS, texts(tmp_path, *TEXTS, *twice)).data()
    seen = [{row.tobytes() for row in split.inputs["tokens"]} for split in (rows.train, rows.validation, rows.test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(TEXTS)


def test_a_loader_of_its_own_splits_has_every_part_made(tmp_path):
    code = (
        "import numpy as np\nfrom edgewright_compiler.rows import Data, Labelled\n"
        "def part(name, a, b):\n"
        "    x = np.arange(a, b, dtype=np.uint8)[:, None] + np.arange(5, dtype=np.uint8)\n"
        "    return Labelled(name, {'text': x}, np.arange(b - a) % 2)\n"
        "def rows():\n"
        "    p = [part(*one) for one in (('train', 0, 40), ('v', 40, 50), ('t', 50, 60), ('view', 60, 70))]\n"
        "    more = part('', 70, 80).inputs\n"
        "    return Data(*p[:3], '', ('a', 'b'), (p[3],), part('', 80, 90).inputs, more)\n"
    )
    (tmp_path / "loader.py").write_text(code)
    host = NET + "def host(rows):\n    return rows.astype(np.int32) + 1\n"
    recipe = made(tmp_path, host, f"{tmp_path / 'loader.py'}:rows")
    assert isinstance(recipe, HostRecipe)
    data = recipe.data()
    assert data.unlabelled is not None
    assert data.reference is not None
    parts = [r.inputs for r in (data.train, data.validation, data.test, *data.views)] + [
        data.unlabelled,
        data.reference,
    ]
    assert [int(rows["tokens"][0, 0]) for rows in parts] == [1, 41, 51, 61, 81, 71]
    with np.load(io.BytesIO(recipe.golden)) as vectors:
        np.testing.assert_array_equal(vectors["tensor:tokens"], data.reference["tokens"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return rows[:3].astype(np.int32)",
            r"host\(rows\) gave int32 \(3, 8\) for 60 samples: expected an array with",
        ),
        ("return None", r"host\(rows\) gave NoneType for 60 samples"),
        ("return rows.astype(np.float64)", r"host\(rows\) gave: float64 of shape \(60, 8\) is no kind of sample"),
        ("rows[0] = 1\n    return rows", r"mine.py:7: host\(\) raised ValueError: assignment destination is read-only"),
        ("return rows['x']", r"mine.py:7: host\(\) raised IndexError"),
        ("return np.random.default_rng().integers(0, 9, (len(rows), 4))", "makes 'tokens' anew each time"),
        (
            "return (rows - rows.mean(0)).astype(np.float32)",
            "a sample alone gives another 'vector' than among others.*let no row depend on another",
        ),
    ],
)
def test_a_host_that_no_application_could_repeat_is_told_why(tmp_path, body, message):
    with pytest.raises(RequestError, match=message):
        made(tmp_path, f"{NET}def host(rows):\n    {body}\n", texts(tmp_path))


def test_text_needs_a_front_or_a_host(tmp_path):
    with pytest.raises(
        RequestError, match=r"samples uint8 \[8\] are taken for text in UTF-8.*front\(data\).*host\(rows\)"
    ):
        made(tmp_path, NET, texts(tmp_path))
    front = "def front(data):\n    return HashedNgrams(300)\n"
    hashed = f"from edgewright_compiler.graph.blocks.text import HashedNgrams\n{NET}{front}"
    (tmp_path / "hashed").mkdir()
    recipe = made(tmp_path / "hashed", hashed, texts(tmp_path))
    assert (recipe.input.name, recipe.input.dtype, recipe.statistics) == ("text", "uint8", "tokens")


def test_samples_of_unequal_splits_are_told(tmp_path):
    data = texts(tmp_path, x_test=encoded(["up 900", "down 901"], 9), y_test=np.array(["u", "d"]))
    with pytest.raises(RequestError, match=r"expected uint8\[8\] as in the first split, got uint8\[9\]"):
        made(tmp_path, LETTERS, data)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_leads_to_a_package_that_holds_an_application_to_its_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page_files(tmp_path, "orders.py", "app.py")
    (commands,) = [body for language, body in BLOCKS if language == "sh" and "--transform" in body]
    for line in commands.replace("\\\n", "").splitlines():
        assert run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "before the application makes this of its raw samples (preprocess: host)" in said
    assert "before app.py:ids makes of all 32 golden samples what the package expects" in said

    place = Path("packages/orders-1.0.0")
    package = read_package(place)
    assert package.manifest.preprocess == "host"
    assert GOLDEN_FILE in package.manifest.files
    assert "Preprocess: host. The application makes `tokens`" in package.read("card.md").decode()
    golden = read_golden(package.read(GOLDEN_FILE), package.manifest)
    variant = package.manifest.variant("onnx-int8")
    m = package.manifest
    session = open_session(place / variant.model, "onnxruntime", inputs=m.inputs, outputs=m.outputs)
    on = session.run({golden.name: golden.tensor})["probabilities"].argmax(axis=1) == m.labels.index("on")
    said_on = [bytes(row).startswith((b"turn on", b"switch on", b"light up")) for row in golden.raw]
    assert (on == said_on).sum() > 24

    assert run(["inspect", str(place), "--transform", "app.py:ids", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transform"] == {"function": "app.py:ids", "samples": 32}
    Path("other.py").write_text("import app\ndef ids(rows):\n    return app.ids(rows).astype('int64')\n")
    assert run(["inspect", str(place), "--transform", "other.py:ids", "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "tokens: sample 0: expected int32[1, 8], got int64[1, 8]; 32 of 32 samples differ" in told.err

    vectors = place / GOLDEN_FILE
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"x")
    assert run(["inspect", str(place), "--transform", "app.py:ids"]) == 2
    assert "golden.npz: expected sha256" in capsys.readouterr().err


def test_a_transform_is_for_a_package_that_needs_one(tmp_path, capsys):
    tiny = Path(__file__).parents[1] / "data" / "tiny-1.0.0.ewp"
    assert run(["inspect", str(tiny), "--transform", "app.py:ids"]) == 2
    assert "--transform is for a package of preprocess: host; tiny 1.0.0 takes raw samples" in capsys.readouterr().err
