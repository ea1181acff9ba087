"""Folders, tables, archives and loaders become checked rows; what is wrong with a file is told by its name."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewright_compiler.data.collection import fingerprint
from edgewright_compiler.data.folders import read_images
from edgewright_compiler.data.opening import _parts, open_data
from edgewright_compiler.rows import Data, Labelled
from edgewright_contracts.errors import RequestError, Unavailable


def pictures(root: Path, classes=("cat", "dog"), each: int = 12, size=(6, 5), colour: bool = False, seed: int = 0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (size[1], size[0], 3) if colour else (size[1], size[0]), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def sound(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_image_folder_becomes_grey_or_coloured_rows(tmp_path):
    grey = open_data(pictures(tmp_path / "a"), "classification", seed=0)
    assert grey.labels == ("cat", "dog")
    assert grey.train.inputs["image"].dtype == np.uint8
    assert grey.train.inputs["image"].shape == (16, 5, 6)
    assert (len(grey.validation), len(grey.test)) == (4, 4)
    i = 3
    np.testing.assert_array_equal(grey.train.inputs["image"][i], np.asarray(Image.open(grey.train.origins[i])))
    assert grey.labels[grey.train.labels[i]] == Path(grey.train.origins[i]).parent.name
    coloured = open_data(pictures(tmp_path / "b", colour=True), "classification", seed=0)
    assert coloured.test.inputs["image"].shape == (4, 5, 6, 3)


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_images_of_16_bits_keep_their_brightness_beside_one_another(tmp_path, suffix, dtype):
    files = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    for file, level in zip(files, (200, 300, 51_200), strict=True):
        Image.fromarray(np.full((4, 5), level, dtype)).save(file)
    found = read_images(files)[0]["image"]
    assert found.shape == (3, 4, 5), "grey"
    assert [int(image.max()) for image in found] == [0, 1, 200]
    with pytest.raises(RequestError, match=r"0\.\w+: in 1 images of 16 bits no pixel is above 255 of 65535"):
        read_images(files[:1])


def test_equal_files_give_equal_data_and_another_pixel_another_fingerprint(tmp_path):
    root = pictures(tmp_path / "a")
    first, again = (open_data(root, "classification", seed=0) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(first.train.inputs["image"], again.train.inputs["image"])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(root / "cat" / "0.png")
    assert open_data(root, "classification", seed=0).fingerprint != first.fingerprint


def test_a_split_of_ones_own_is_kept_and_a_missing_validation_is_cut_from_training(tmp_path):
    pictures(tmp_path / "train", each=20)
    pictures(tmp_path / "test", each=6, seed=1)
    found = open_data(tmp_path, "classification", seed=0)
    assert (len(found.train), len(found.validation), len(found.test)) == (34, 6, 12)
    assert {Path(o).parts[-3] for o in found.test.origins} == {"test"}
    assert "validation taken from its training samples" in " ".join(found.notes)


def test_a_leak_between_ones_own_splits_names_both_files(tmp_path):
    pictures(tmp_path / "train", each=20)
    pictures(tmp_path / "test", each=6, seed=1)
    copied = tmp_path / "test" / "dog" / "5.png"
    copied.write_bytes((tmp_path / "train" / "cat" / "7.png").read_bytes())
    with pytest.raises(RequestError, match=r"leak: .*test/dog/5.png in test is the same sample as .*/train/cat/7.png"):
        open_data(tmp_path, "classification", seed=0)


def test_other_sizes_are_resized_and_noted_and_a_broken_image_is_named(tmp_path):
    root = pictures(tmp_path)
    Image.new("L", (12, 10), 9).save(root / "cat" / "big.png")
    found = open_data(root, "classification", seed=0)
    assert found.notes[0].startswith("1 of 25 images were resized to 6x5 (")
    assert found.notes[0].endswith(" first), the most common of 2 sizes.")
    (root / "dog" / "3.png").write_bytes((root / "dog" / "3.png").read_bytes()[:60])
    with pytest.raises(RequestError, match=r"dog/3.png: not a"):
        open_data(root, "classification", seed=0)


def test_folders_of_the_task_anomaly_have_a_normal_one(tmp_path):
    pictures(tmp_path / "a", classes=("good", "scratch", "hole"), each=20)
    found = open_data(tmp_path / "a", "anomaly", seed=0)
    assert found.train.labels.sum() == 0
    assert (len(found.train), int(found.validation.labels.sum()), int(found.test.labels.sum())) == (14, 20, 20)
    pictures(tmp_path / "b", classes=("scratch", "hole"))
    with pytest.raises(RequestError, match="no folder of normal samples: expected one called normal, good or ok"):
        open_data(tmp_path / "b", "anomaly", seed=0)


def test_labels_csv_says_what_folders_cannot(tmp_path):
    root = pictures(tmp_path, classes=("all",), each=20)
    lines = [f"all/{i}.png,{i % 2},{(i // 2) % 2},p{i % 10}" for i in range(20)]
    write(root / "labels.csv", "file,label:wet,label:cold,group\n" + "\n".join(lines))
    found = open_data(root, "multilabel", seed=0)
    assert found.labels == ("wet", "cold")
    assert found.train.labels.shape == (len(found.train), 2)
    assert not set(found.train.groups) & set(found.test.groups)
    lines = [f"all/{i}.png,car,1,1,3,4" for i in range(20)] + ["all/0.png,bus,0,0,6,5"]
    write(root / "labels.csv", "file,label,x0,y0,x1,y1\n" + "\n".join(lines))
    boxes = open_data(root, "detection", seed=0)
    assert boxes.labels == ("bus", "car")
    first = next(s for s in (boxes.train, boxes.validation, boxes.test) if any(o.endswith("/0.png") for o in s.origins))
    at = next(i for i, o in enumerate(first.origins) if o.endswith("/0.png"))
    np.testing.assert_allclose(first.labels[at], [[1, 1 / 6, 0.2, 0.5, 0.8], [0, 0, 0, 1, 1]], atol=1e-6)
    write(root / "labels.csv", "file,label\nall/99.png,x\n")
    with pytest.raises(RequestError, match=r"labels.csv:2: no file 'all/99.png'"):
        open_data(root, "classification", seed=0)


def test_recordings_become_int16_of_one_rate_and_length(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        length = 400 if i else 300
        sound(tmp_path / ("yes", "no")[i % 2] / f"{i}.wav", rng.integers(-9000, 9000, length))
    stereo = rng.integers(-9000, 9000, (400, 2))
    sound(tmp_path / "yes" / "stereo.wav", stereo, channels=2)
    found = open_data(tmp_path, "classification", seed=0)
    assert found.train.inputs["audio"].dtype == np.int16
    assert found.train.inputs["audio"].shape[1:] == (400,)
    assert "0.05 s each; 1 of 25 were cut or filled up" in found.notes[0]
    every = {o: x for s in (found.train, found.validation, found.test) for o, x in zip(s.origins, s.inputs["audio"], strict=True)}  # fmt: skip  # noqa: E501
    np.testing.assert_array_equal(every[str(tmp_path / "yes" / "stereo.wav")], np.rint(stereo.mean(axis=1)))
    sound(tmp_path / "no" / "fast.wav", rng.integers(0, 9, 400), rate=16000)
    with pytest.raises(RequestError, match=r"fast.wav: 16000 samples a second, the other recordings have 8000"):
        open_data(tmp_path, "classification", seed=0)


def windows(n: int = 30, steps: int = 4, bad: str = "") -> str:
    rng = np.random.default_rng(0)
    lines = ["window,label,group,ax,ay"]
    for w in range(n):
        lines += [f"w{w},{('walk', 'run')[w % 2]},p{w % 6},{rng.normal():.4f},{rng.normal():.4f}" for _ in range(steps)]
    return "\n".join(lines) + "\n" + bad


def test_a_csv_of_windows_becomes_series_in_groups(tmp_path):
    found = open_data(write(tmp_path / "w.csv", windows()), "classification", seed=0)
    assert found.labels == ("run", "walk")
    assert found.train.inputs["window"].shape[1:] == (4, 2)
    assert found.train.inputs["window"].dtype == np.float32
    assert sum(map(len, (found.train, found.validation, found.test))) == 30
    assert "Columns: ax, ay." in found.notes


def test_a_csv_without_windows_is_a_row_a_line_and_may_say_its_split(tmp_path):
    lines = [f"{i},{i * 0.5},{('train', 'val', 'test')[0 if i < 20 else 1 + i % 2]}" for i in range(40)]
    found = open_data(write(tmp_path / "t.csv", "a,target,split\n" + "\n".join(lines)), "regression", seed=0)
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 10, 10)
    assert found.train.labels.shape == (20, 1)
    assert found.train.inputs["row"].shape == (20, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (windows(bad="w99,run,p1,0.5,x"), r"w.csv:122, column 'ay': expected a number, got 'x'"),
        (windows(bad="w99,run,p1,0.5,"), r"w.csv:122, column 'ay': expected a finite number .*, got 'an empty cell'"),
        (windows(bad="w99,run,p1,0.5,1.5"), r"w.csv:122: the window 'w99' has 1 lines, most have 4"),
        (windows(bad="w99,run,p1,0.5"), r"w.csv:122: 4 cells under 5 columns"),
        (windows(bad="w9,a,p1,1,1\nw9,b,p1,1,1\nw9,a,p1,1,1\nw9,a,p1,1,1"), r"w.csv:123, column 'label': 'b'"),
        ("ax,ay\n1,2\n", "expected a column `label` for the task classification, got none"),
        ("label,ax\n", "no line under the header"),
        ("label\na\n", "no column of measurements: got label"),
    ],
)  # fmt: skip
def test_a_broken_table_names_line_and_column(tmp_path, text, message):
    with pytest.raises(RequestError, match=message):
        open_data(write(tmp_path / "w.csv", text), "classification", seed=0)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unavailable, match=r"pip install 'edgewright\[parquet\]', or save the table as CSV"):
        open_data(write(tmp_path / "t.parquet", "x"), "regression", seed=0)


def parquet(path: Path, columns) -> Path:
    """Written by pyarrow; the test is skipped where it is not."""
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.table(columns), str(path))
    return path


def test_a_parquet_table_is_read_like_a_csv_of_the_same_cells(tmp_path):
    rng = np.random.default_rng(3)
    ax, ay = (rng.normal(size=40).astype(np.float32) for _ in range(2))
    label, group = [("walk", "run")[i % 2] for i in range(40)], [f"p{i % 8}" for i in range(40)]
    lines = [f"{lab},{g},{float(a)!r},{float(b)!r}" for lab, g, a, b in zip(label, group, ax, ay, strict=True)]
    told = open_data(write(tmp_path / "t.csv", "label,group,ax,ay\n" + "\n".join(lines)), "classification", seed=0)
    # a folder called like a column is no column, and what pandas writes of its index is no measurement
    place = tmp_path / "ay=7" / "t.parquet"
    columns = {"label": label, "group": group, "ax": ax, "ay": ay, "__index_level_0__": np.arange(40)}
    found = open_data(parquet(place, columns), "classification", seed=0)
    assert found.fingerprint == told.fingerprint
    assert found.labels == ("run", "walk")
    np.testing.assert_array_equal(found.test.groups, told.test.groups)
    at = int(found.train.origins[0].removeprefix(f"{place} row ").removesuffix(" (from 0)"))
    assert found.train.inputs["row"][0].tolist() == [ax[at], ay[at]]


def test_parquet_of_whole_numbers_and_of_yes_and_no_and_with_gaps(tmp_path):
    columns = {"a": list(range(40)), "on": [i % 3 == 0 for i in range(40)], "label:x": [i % 2 == 0 for i in range(40)]}
    found = open_data(parquet(tmp_path / "t.parquet", columns), "multilabel", seed=0)
    rows = np.concatenate([s.inputs["row"] for s in (found.train, found.validation, found.test)])
    labels = np.concatenate([s.labels for s in (found.train, found.validation, found.test)])[:, 0]
    order = rows[:, 0].argsort()
    np.testing.assert_array_equal(rows[order], [[i, i % 3 == 0] for i in range(40)])
    np.testing.assert_array_equal(labels[order], [i % 2 == 0 for i in range(40)])
    gap = parquet(tmp_path / "g.parquet", {**columns, "a": [*range(17), None, *range(22)]})
    with pytest.raises(RequestError, match=r"g.parquet row 17 \(from 0\), column 'a': .* got 'an empty cell'"):
        open_data(gap, "multilabel", seed=0)


def test_what_is_no_parquet_is_told(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(RequestError, match=r"t.parquet: not a table of Parquet \(.+\)$"):
        open_data(write(tmp_path / "t.parquet", "a,b\n1,2\n"), "regression", seed=0)


def brought(folder: Path, form: str, arrays: dict[str, np.ndarray]) -> str:
    """The same arrays as an archive and as a function of one's own."""
    np.savez(folder / "d.npz", **arrays)
    if form == "npz":
        return str(folder / "d.npz")
    code = f"import numpy as np\ndef load():\n    return dict(np.load({str(folder / 'd.npz')!r}))\n"
    return f"{write(folder / 'mine.py', code)}:load"


@pytest.mark.parametrize("form", ["npz", "function"])
def test_a_row_of_arrays_is_named_by_its_index_before_the_split(tmp_path, form):
    x, y = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32), np.arange(200) % 2
    place = brought(tmp_path, form, {"x": x, "y": y})
    found = open_data(place, "classification", seed=0)
    for split in (found.train, found.validation, found.test):
        for row, said in zip(split.inputs["row"], split.origins, strict=True):
            name, at = said.rstrip("]").rsplit("[", 1)
            assert name == f"{place} x"
            np.testing.assert_array_equal(row, x[int(at)])
    x[123, 1] = np.nan
    place = brought(tmp_path, form, {"x": x, "y": y})
    with pytest.raises(RequestError, match=r"(d.npz|load) x\[123\]: nan at \(1,\)"):
        open_data(place, "classification", seed=0)
    x[123] = 0
    place = brought(tmp_path, form, {"x": x[:80], "y": y[:80], "x_val": x[80:], "y_val": y[80:]})
    assert open_data(place, "classification", seed=0).validation.origins[3] == f"{place} x_val[3]"
    place = brought(tmp_path, form, {"x": x[:80], "y": y[:80], "x_test": x[79:], "y_test": y[79:]})
    with pytest.raises(RequestError, match=r"leak: .* x_test\[0\] in test is the same sample as .* x\[79\] in train"):
        open_data(place, "classification", seed=0)


def test_a_label_above_the_classes_that_are_learned_is_told_with_its_place(tmp_path):
    x, y = np.arange(80, dtype=np.float32).reshape(40, 2), np.arange(40) % 2
    wrong = np.where(np.arange(8) == 5, 7, y[:8])
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x[:8] + 0.5, y_test=wrong)
    with pytest.raises(
        RequestError, match=r"d.npz x_test\[5\]: label 7, but .* training .* label 2: expected labels from 0 to 1"
    ):
        open_data(tmp_path / "d.npz", "classification", seed=0)
    np.savez(tmp_path / "e.npz", x=x, y=y + 1)
    with pytest.raises(RequestError, match=r"e.npz x\[0\]: label 1, but no sample has label 0: expected labels from 0"):
        open_data(tmp_path / "e.npz", "classification", seed=0)


@pytest.mark.parametrize("second", [{"x_train": 0, "y_train": 0}, {"x_val": 0, "x_validation": 0, "y_val": 0}])
def test_arrays_of_one_split_by_two_names_are_refused(tmp_path, second):
    x, y = np.arange(80, dtype=np.float32).reshape(40, 2), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x=x, y=y, **{name: x if name[0] == "x" else y for name in second})
    with pytest.raises(
        RequestError, match=r"d.npz: (arrays of training rows by two names|both 'x_val' and 'x_validat)"
    ):
        open_data(tmp_path / "d.npz", "classification", seed=0)


def test_an_npz_may_hold_splits_names_and_unlabelled_rows(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (40, 4, 4), np.uint8)
    names = np.array(["left", "right"])
    np.savez(tmp_path / "d.npz", x=x, y=names[np.arange(40) % 2], x_test=x[:8] ^ 1, y_test=names[np.arange(8) % 2],
             unlabelled=x[:5] ^ 2)  # fmt: skip
    found = open_data(tmp_path / "d.npz", "classification", seed=0)
    assert found.labels == ("left", "right")
    assert (len(found.train), len(found.test)) == (34, 8)
    assert found.unlabelled["image"].shape == (5, 4, 4)
    np.savez(tmp_path / "e.npz", a=x)
    with pytest.raises(RequestError, match=r"e.npz: expected the arrays x and y"):
        open_data(tmp_path / "e.npz", "classification", seed=0)
    np.savez(tmp_path / "f.npz", x=x, y=np.arange(39))
    with pytest.raises(RequestError, match="40 samples and 39 labels"):
        open_data(tmp_path / "f.npz", "classification", seed=0)
    write(tmp_path / "g.npz", "no archive")
    with pytest.raises(RequestError, match=r"g.npz: not an archive"):
        open_data(tmp_path / "g.npz", "classification", seed=0)


def test_a_loader_gives_arrays_or_data(tmp_path):
    code = write(
        tmp_path / "mine.py",
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "def pair():\n    return rng.normal(size=(40, 3)), np.arange(40) % 2\n"
        "def single():\n    return 3\n"
        "def text():\n    return np.array([['a']] * 20), np.arange(20)\n",
    )
    found = open_data(f"{code}:pair", "classification", seed=0)
    assert found.train.inputs["row"].dtype == np.float32
    with pytest.raises(RequestError, match=r"mine.py:single: expected Data, \(x, y\).*, got int"):
        open_data(f"{code}:single", "classification", seed=0)
    with pytest.raises(RequestError, match="expected an array of numbers, got dtype <U1"):
        open_data(f"{code}:text", "classification", seed=0)
    with pytest.raises(RequestError, match="no 'other' in it; it defines pair, single, text"):
        open_data(f"{code}:other", "classification", seed=0)
    with pytest.raises(RequestError, match="no such file"):
        open_data(tmp_path / "nothing", "classification", seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no data in it: expected images"):
        open_data(tmp_path / "empty", "classification", seed=0)


LOADER = """
import numpy as np
from dataclasses import replace
from edgewright_compiler.rows import Data, Labelled
def rows(name, n, seed):
    rng = np.random.default_rng(seed)
    return Labelled(name, {"row": rng.normal(size=(n, 3))}, np.arange(n) % 2)
def load():
    rng = np.random.default_rng(9)
    names = ("train", "validation", "test", "field")
    train, validation, test, view = (rows(name, 20, seed) for seed, name in enumerate(names))
    aside = {"unlabelled": {"row": rng.normal(size=(5, 3))}, "reference": {"row": rng.normal(size=(5, 3))}}
    data = Data(train, validation, test, "", ("a", "b"), (view,), **aside)
    CHANGE
    return data
"""


@pytest.mark.parametrize(
    "change",
    [
        "train.inputs['row'][3, 1] += 1",
        "validation.inputs['row'][3, 1] += 1",
        "test.labels[:] = 1 - test.labels",
        "view.inputs['row'][3, 1] += 1",
        "data.unlabelled['row'][3, 1] += 1",
        "data.reference['row'][3, 1] += 1",
    ],
)
def test_a_fingerprint_tells_any_change_of_any_rows(tmp_path, change):
    before = open_data(f"{write(tmp_path / 'a.py', LOADER.replace('CHANGE', ''))}:load", "classification", seed=0)
    after = open_data(f"{write(tmp_path / 'b.py', LOADER.replace('CHANGE', change))}:load", "classification", seed=0)
    assert before.reference["row"].dtype == before.unlabelled["row"].dtype == np.float32
    assert before.fingerprint != after.fingerprint


def test_training_rows_are_in_the_fingerprint_though_another_split_has_their_name():
    def parts(value: float):
        x = {"row": np.full((2, 3), value, np.float32)}
        same = {"row": np.zeros((2, 3), np.float32)}
        y = np.arange(2)
        train, validation, test = (Labelled("rows", rows, y) for rows in (x, same, same))
        return fingerprint(_parts(Data(train, validation, test, "", ("a", "b"))))

    assert parts(1.0) != parts(2.0)


def test_a_table_that_is_not_utf8_or_is_cut_at_semicolons_is_told_by_line(tmp_path):
    place = tmp_path / "rows.csv"
    place.write_bytes(b"a,label\n" + b"1,x\n" * 600 + "2,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"rows\.csv: line 602 is not UTF-8; save it as UTF-8"):
        open_data(place, "classification", seed=1)
    place.write_text("a;b;label\n1;2;x\n")
    with pytest.raises(RequestError, match=r"separated by ';'\? expected ','"):
        open_data(place, "classification", seed=1)


def test_a_table_with_a_byte_order_mark_is_read(tmp_path):
    place = tmp_path / "rows.csv"
    place.write_text("\ufefflabel,a\n" + "".join(f"{i % 2},{i}\n" for i in range(40)), encoding="utf-8")
    assert open_data(place, "classification", seed=1).labels == ("0", "1")


@pytest.mark.parametrize("code", ["def exits():\n    import sys\n    sys.exit(5)", "import sys\nsys.exit(5)"])
def test_a_loader_that_exits_is_blamed_and_does_not_end_the_run(tmp_path, code):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(RequestError, match=r"own\.py:\d: (exits\(\) called|does not import:) sys\.exit\(5\)"):
        open_data(f"{tmp_path / 'own.py'}:exits", "classification", seed=1)


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("a,label\n" + "".join(f"{i},x\n" for i in range(8)), "classification", r"d\.csv: 8 samples cannot be split"),
        ("a,label\n" + "1,x\n2,y\n" * 30, "classification", r"d\.csv: 2 distinct among 60 samples"),
        ("a,label\n" + "".join(f"{i},x\n" for i in range(40)), "classification", r"d\.csv: one class only"),
        ("a,target\n" + "".join(f"{i},7\n" for i in range(40)), "regression", r"d\.csv: target 0 is 7 in every"),
        ("a,label\n" + "".join(f"{i},odd\n" for i in range(40)), "anomaly", r"d\.csv: no normal sample among 40"),
        ("a,label\n" + "".join(f"{i},ok\n" for i in range(40)), "anomaly", r"d\.csv: no anomaly among 40 samples"),
        (
            "a,label\n" + "1e300,x\n2,y\n" * 30,
            "classification",
            r"finite number \(float32, 3\.4e38 at most\), got '1e300'",
        ),
    ],
)
def test_data_that_cannot_be_split_or_learned_from_are_named_by_their_file(tmp_path, text, task, message):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(RequestError, match=message):
        open_data(tmp_path / "d.csv", task, seed=1)


def test_what_does_not_fit_float32_or_is_pickled_is_refused_without_a_way_to_run_it(tmp_path):
    x = np.arange(200.0).reshape(100, 2)
    x[3, 1] = 1e300
    np.savez(tmp_path / "huge.npz", x=x, y=np.arange(100) % 2)
    with pytest.raises(RequestError, match=r"\[3\]: 1e\+300 at \(1,\) does not fit float32"):
        open_data(tmp_path / "huge.npz", "classification", seed=1)
    np.savez(tmp_path / "own.npz", x=np.array([{}], object), y=np.arange(1))
    with pytest.raises(RequestError, match="without pickles of Python objects") as refused:
        open_data(tmp_path / "own.npz", "classification", seed=1)
    assert "allow_pickle" not in str(refused.value)
