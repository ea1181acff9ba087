"""A person's model and data become a recipe, or one message that says what is wrong with which file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewright_compiler.own.models import builder, local_sources
from edgewright_compiler.own.recipe import own_recipe
from edgewright_contracts.errors import RequestError

FAMILY = """
from torch import nn
def build(width=1.0, classes=3, shape=(4,)):
    d = max(2, int(8 * width))
    return nn.Sequential(nn.Linear(shape[0], d), nn.ReLU(), nn.Linear(d, classes))
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    np.savez(tmp_path / "rows.npz", x=rng.normal(5, 2, (90, 4)), y=y)
    return tmp_path / "rows.npz"


def model(directory: Path, code: str, name: str = "mine.py") -> str:
    (directory / name).write_text(code)
    return f"{directory / name}:build"


def test_a_builder_with_a_width_is_a_family_and_its_own_teacher(tmp_path, rows):
    made = own_recipe(model(tmp_path, FAMILY), rows, task="classify")
    assert (made.name, made.task, made.metric, made.statistics) == ("mine", "classification", "accuracy", "vector")
    assert (made.input.name, made.input.dtype, made.input.shape) == ("row", "float32", (4,))
    assert made.student is not None
    assert [made.student(w)[0].out_features for w in made.widths] == [8, 4, 2]
    assert made.teacher is not None
    assert made.teacher.build is not None
    assert made.teacher.build()[0].out_features == 8
    assert made.sources == (tmp_path / "mine.py",)
    assert made.data().labels == ("0", "1", "2")
    x = torch.from_numpy(made.data().train.inputs["row"])
    prepared = made.front(made.data())(x)
    torch.testing.assert_close(prepared.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)


def test_a_builder_without_a_width_is_compressed_itself(tmp_path, rows):
    code = (
        "from torch import nn\ndef build(classes):\n    return nn.Sequential(nn.LazyLinear(6), nn.Linear(6, classes))"
    )
    made = own_recipe(model(tmp_path, code), rows, task="classify")
    assert made.student is None
    assert made.widths == (1.0,)
    assert made.teacher is not None
    assert made.teacher.build is not None
    assert made.teacher.build()[0].weight.shape == (6, 4)  # lazy layers have their sizes


def test_a_teacher_of_its_own_and_a_student_of_one_size(tmp_path, rows):
    big = model(tmp_path, FAMILY.replace("8 *", "32 *"), "big.py")
    small = model(tmp_path, FAMILY.replace("width=1.0, ", "").replace("* width", "* 1"), "small.py")
    made = own_recipe(small, rows, task="classify", teacher=big)
    assert made.teacher is not None
    assert made.teacher.build is not None
    assert made.teacher.build()[0].out_features == 32
    assert made.student is not None
    assert made.student(1.0)[0].out_features == 8
    assert {p.name for p in made.sources} == {"big.py", "small.py"}
    with pytest.raises(RequestError, match="no such model file"):
        own_recipe(small, rows, task="classify", teacher="absent.onnx")


def test_answers_of_a_regression_come_in_the_unit_of_the_targets(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    np.savez(tmp_path / "r.npz", x=x, y=20_000 + 1000 * x[:, :2])
    made = own_recipe(model(tmp_path, FAMILY), tmp_path / "r.npz", task="regress")
    assert made.student is not None
    net = made.student(1.0)
    answer = net(torch.zeros(5, 4))
    assert answer.shape == (5, 2)
    assert (answer - 20_000).abs().max() < 3000
    assert set(net.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_finetuning_takes_what_fits_and_says_what_does_not(tmp_path, rows):
    place = model(tmp_path, FAMILY)
    trained = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 7))
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    made = own_recipe(place, rows, task="classify", finetune=tmp_path / "w.pt", epochs=8)
    assert made.teacher is not None
    assert made.teacher.weights == tmp_path / "w.pt"
    assert made.teacher.schedule is not None
    assert (made.teacher.schedule.frozen_epochs, made.schedule.frozen_epochs) == (2, 0)
    assert made.notes[-1] == "Fine-tuned from w.pt: 2 tensors taken; untrained: 2.weight, 2.bias."
    with pytest.raises(RequestError, match=r"none.pt: no such file"):
        own_recipe(place, rows, task="classify", finetune=tmp_path / "none.pt")


def test_hooks_of_the_file_are_used_and_checked(tmp_path, rows):
    hooks = FAMILY + (
        "import torch\nclass Twice(nn.Module):\n    def forward(self, x):\n        return torch.cat([x, x], 1)\n"
        "def front(data):\n    return Twice()\n"
        "def augment(rng, rows):\n    return rows + rng.normal(size=rows.shape).astype(rows.dtype)\n"
    )
    made = own_recipe(model(tmp_path, hooks), rows, task="classify")
    assert made.student is not None
    assert made.student(1.0)[0].in_features == 8
    assert made.augment is not None
    bad = FAMILY + "def augment(rng, rows):\n    return rows[:, :2]\n"
    with pytest.raises(RequestError, match=r"bad.py: augment\(rng, rows\) gave float32 \(4, 2\) for float32 \(4, 4\)"):
        own_recipe(model(tmp_path, bad, "bad.py"), rows, task="classify")
    rude = FAMILY + "def augment(rng, rows):\n    rows += 1\n    return rows\n"
    with pytest.raises(RequestError, match="work on a copy"):
        own_recipe(model(tmp_path, rude, "rude.py"), rows, task="classify")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(depth):\n    return 1", "wants 'depth': a builder may take width, classes, shape"),
        ("def build():\n    return 1", "expected an nn.Module, got int"),
        ("from torch import nn\ndef build():\n    return nn.Linear(9, 3)", "does not take two samples of shape"),
        (
            "from torch import nn\ndef build():\n    return nn.Linear(4, 5)",
            r"this one answers \[n, 5\]: change its last",
        ),
        ("import nowhere", "does not import: ModuleNotFoundError: No module named 'nowhere'"),
        ("build = 3", "expected a function, got int"),
        ("def other():\n    pass", "no 'build' in it; it defines other"),
    ],
)
def test_a_builder_that_cannot_be_used_is_told_why(tmp_path, rows, code, message):
    with pytest.raises(RequestError, match=message):
        own_recipe(model(tmp_path, code), rows, task="classify")


def test_wrong_requests_name_what_is_possible(tmp_path, rows):
    place = model(tmp_path, FAMILY)
    with pytest.raises(RequestError, match="expected a task among classify, multilabel, regress, detect, anomaly"):
        own_recipe(place, rows, task="guess")
    with pytest.raises(RequestError, match="metric map50 is for detection"):
        own_recipe(place, rows, task="classify", metric="map50")
    with pytest.raises(RequestError, match=r"expected FILE.py:FUNCTION that returns an nn.Module"):
        own_recipe("resnet18", rows, task="classify")
    with pytest.raises(RequestError, match="at least one epoch"):
        own_recipe(place, rows, task="classify", epochs=0)


def test_sources_are_the_file_and_what_it_imports_from_below_its_folder(tmp_path):
    for name, code in (
        ("net_settings.py", "SCALE = 3\n"),
        ("net_late.py", "WIDTH = 4\n"),
        ("net_named.py", "DEPTH = 1\n"),
        ("net_unused.py", ""),
        ("nets/__init__.py", ""),
        ("nets/blocks.py", "from torch import nn\nfrom .sizes import N\nclass B(nn.Linear):\n    pass\n"),
        ("nets/sizes.py", "N = 2\n"),
        ("nets/other.py", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    code = (
        "import importlib\nfrom net_settings import SCALE\nfrom nets.blocks import B\n"
        "def build():\n    from net_late import WIDTH\n    importlib.import_module('net_named')\n    return B(WIDTH, 3)"
    )
    wanted = {"net_settings.py", "net_late.py", "nets/__init__.py", "nets/blocks.py", "nets/sizes.py"}
    for name in ("net.py", "net_again.py"):  # for the second one, the modules are loaded already
        made = builder(model(tmp_path, code, name), classes=3, shape=(4,))
        made.make(1.0)
        found = local_sources(tmp_path / name)
        assert {p.relative_to(tmp_path).as_posix() for p in found} - {"net_named.py"} == wanted | {name}
        assert list(found) == sorted(found)
    assert tmp_path / "net_named.py" in local_sources(tmp_path / "net.py")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build():\n    raise ValueError('too deep')", r"own.py:2: build\(\) raised ValueError: too deep"),
        (
            "def build():\n    import own_absent",
            r"own.py:2: build\(\) raised ModuleNotFoundError: No module named 'own_a",
        ),
        ("def build(:\n    pass", "own.py:1: does not import: SyntaxError"),
        (FAMILY + "def front(data):\n    return data.nothing\n", r"own.py:7: front\(\) raised AttributeError"),
        (FAMILY + "def augment(rng, rows):\n    return {}['x']\n", r"own.py:7: augment\(\) raised KeyError: 'x'"),
        (FAMILY + "def augment(rng):\n    return 1\n", r"own.py: augment\(\) raised TypeError: augment\(\) takes 1"),
        (FAMILY + "augment = 3\n", "own.py:augment: expected a function, got int"),
    ],
)
def test_what_goes_wrong_in_ones_own_code_is_told_with_its_line(tmp_path, rows, code, message):
    with pytest.raises(RequestError, match=message):
        own_recipe(model(tmp_path, code, "own.py"), rows, task="classify")


LOSING = """
from torch import nn
class Net(nn.Linear):
    def loss(self, answer, labels):
        return {}
def build(classes):
    return Net(4, classes)
"""


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            "answer[:, 9].mean()",
            r"own.py:5: loss\(\) raised IndexError.* answer \[2, 3\] and labels int64 \[2\] of two tr",
        ),
        ("answer.detach().mean()", r"a scalar tensor that depends on the answer, got shape \[\] without a gradient"),
        ("answer", r"got shape \[2, 3\]; it is given answer \[2, 3\]"),
        ("0.5", "to return a scalar tensor that depends on the answer, got float"),
    ],
)
def test_a_loss_of_ones_own_is_tried_before_training(tmp_path, rows, returned, message):
    with pytest.raises(RequestError, match=message):
        own_recipe(model(tmp_path, LOSING.format(returned), "own.py"), rows, task="classify")


def test_a_loss_of_ones_own_is_noted(tmp_path, rows):
    made = own_recipe(model(tmp_path, LOSING.format("answer.mean() ** 2"), "own.py"), rows, task="classify")
    assert "Trained with the own loss(answer, labels) of own.py:build." in made.notes


def test_a_net_that_fails_inside_is_told_with_its_line(tmp_path, rows):
    code = LOSING.format("answer.mean()") + "class Bad(Net):\n    def forward(self, x):\n        return x @ x\n"
    place = model(tmp_path, code + "def build():\n    return Bad(4, 3)\n", "own.py")
    with pytest.raises(
        RequestError, match=r"does not take two samples of shape \(4,\).*\(.*own.py:10\); let the builder"
    ):
        own_recipe(place, rows, task="classify")


def test_a_loader_that_fails_is_told_with_its_line(tmp_path):
    (tmp_path / "loader.py").write_text("def deep():\n    return {}['x']\ndef load():\n    return deep()\n")
    with pytest.raises(RequestError, match=r"loader.py:2: load\(\) raised KeyError: 'x'"):
        own_recipe(model(tmp_path, FAMILY), f"{tmp_path / 'loader.py'}:load", task="classify")


def test_tokens_are_valid_up_to_the_largest_of_training(tmp_path):
    x = np.random.default_rng(0).integers(0, 40, (90, 6), np.int64)
    x[0, 0], held = 40, x[:30] + 10
    y = np.arange(90) % 3
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, x_test=held, y_test=y[:30], x_validation=held + 1,
             y_validation=y[:30])  # fmt: skip
    code = (
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.Embedding(60, 4), nn.Flatten(), nn.Linear(24, classes))"
    )
    made = own_recipe(model(tmp_path, code), tmp_path / "t.npz", task="classify")
    assert made.input.valid == (0.0, 40.0)


def test_an_image_comes_to_the_net_with_its_channels_first(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "i.npz", x=rng.integers(0, 255, (40, 6, 5, 3), np.uint8), y=np.arange(40) % 2)
    code = "from torch import nn\ndef build(classes, shape):\n    assert shape == (3, 6, 5)\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(classes))"  # noqa: E501
    made = own_recipe(model(tmp_path, code), tmp_path / "i.npz", task="classify")
    assert (made.input.shape, made.input.valid, made.statistics) == ((6, 5, 3), (0.0, 255.0), "image")
    raw = torch.from_numpy(made.data().train.inputs["image"])
    prepared = made.front(made.data())(raw)
    assert prepared.shape == (len(raw), 3, 6, 5)
    torch.testing.assert_close(prepared.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
