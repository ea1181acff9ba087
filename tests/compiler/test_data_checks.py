"""Bad data gets one message that names the sample, the limit and the way out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgewright_compiler.data.checks import examine
from edgewright_compiler.rows import Data, Labelled
from edgewright_contracts.errors import RequestError


def data(task: str = "classification", **changes) -> Data:
    rng = np.random.default_rng(0)
    splits = []
    for name, n in (("train", 60), ("validation", 20), ("test", 20)):
        y = {
            "classification": np.arange(n) % 3,
            "anomaly": (np.arange(n) % 2) * (name != "train"),
            "multilabel": (rng.random((n, 3)) > 0.5).astype(np.float32),
            "regression": rng.normal(size=(n, 1)).astype(np.float32),
            "detection": np.tile(np.float32([1, 0.1, 0.1, 0.5, 0.6]), (n, 2, 1)),
        }[task]
        x = rng.normal(size=(n, 5)).astype(np.float32)
        splits.append(Labelled(name, {"row": x}, y, origins=tuple(f"{name}.csv:{i + 2}" for i in range(n))))
    return replace(Data(*splits, "0" * 64, ("a", "b", "c")), **changes)


def with_labels(found: Data, split: str, at: int, value) -> Data:
    rows = getattr(found, split)
    labels = rows.labels.copy()
    labels[at] = value
    return replace(found, **{split: replace(rows, labels=labels)})


@pytest.mark.parametrize("task", ["classification", "anomaly", "multilabel", "regression", "detection"])
def test_good_data_pass(task):
    found = examine(data(task), task)
    assert found.rows == (60, 20, 20)
    assert found.warnings == ("20 test samples: a bound on the loss is wide below 100",)


def test_a_label_out_of_range_is_told_with_its_place():
    with pytest.raises(RequestError, match=r"validation.csv:9: label 3: expected a class from 0 to 2 \(1 of 20"):
        examine(with_labels(data(), "validation", 7, 3), "classification")


def test_nan_is_told_with_its_sample_and_column():
    found = data()
    found.train.inputs["row"][4, 2] = np.nan
    with pytest.raises(RequestError, match=r"train.csv:6: nan at \(2,\): expected finite.*1 such samples"):
        examine(found, "classification")


def test_one_class_only_is_refused():
    with pytest.raises(RequestError, match=r"one class only \(a\)"):
        examine(replace(data(), labels=("a",)), "classification")
    found = data()
    found.train.labels[:] %= 2
    with pytest.raises(RequestError, match="no training sample of class c"):
        examine(found, "classification")


def test_an_equal_row_in_two_splits_is_a_leak():
    found = data()
    found.test.inputs["row"][3] = found.train.inputs["row"][11]
    with pytest.raises(RequestError, match=r"leak: test.csv:5 in test is the same sample as train.csv:13 in train"):
        examine(found, "classification")


def test_a_group_in_two_splits_is_a_leak():
    found = data()
    people = [np.array([f"p{i % 5 + k}" for i in range(len(r))]) for k, r in
              ((0, found.train), (10, found.validation), (4, found.test))]  # fmt: skip
    parts = [replace(r, groups=g) for r, g in zip((found.train, found.validation, found.test), people, strict=True)]
    with pytest.raises(RequestError, match="leak: group 'p4' is in train and in test"):
        examine(Data(*parts, "0" * 64, found.labels), "classification")


def test_duplicates_in_one_split_and_their_disagreements_are_warnings():
    found = data()
    found.train.inputs["row"][1] = found.train.inputs["row"][0]
    warnings = examine(found, "classification").warnings
    assert warnings[:2] == (
        "1 samples are exact duplicates of another in the same split",
        "1 exact duplicates have different labels, as train.csv:3 and train.csv:2",
    )


def test_few_groups_to_be_judged_on_are_a_warning():
    found = data()
    for count, said in ((9, "9 groups in the test samples: what befalls one group in seven"), (10, None)):
        test = replace(found.test, groups=np.array([f"p{i % count}" for i in range(20)]))
        warnings = [w for w in examine(replace(found, test=test), "classification").warnings if "groups" in w]
        assert [w.startswith(said) for w in warnings] == ([True] if said else [])


def test_uneven_classes_and_constant_columns_are_warnings():
    found = data()
    found.train.labels[:] = 0
    found.train.labels[:2] = (1, 2)
    found.train.inputs["row"][:, 3] = 7
    said = " ".join(examine(found, "classification").warnings)
    assert "58 training samples of 'a', 1 of 'b'" in said
    assert "the first is column 3" in said


def test_what_each_task_cannot_use_is_refused():
    with pytest.raises(RequestError, match=r"expected 0 or 1 for each"):
        examine(with_labels(data("multilabel"), "train", 5, 0.5), "multilabel")
    with pytest.raises(RequestError, match=r"train.csv:7: target"):
        examine(with_labels(data("regression"), "train", 5, np.inf), "regression")
    with pytest.raises(RequestError, match=r"train.csv:7: an anomaly among the training samples"):
        examine(with_labels(data("anomaly"), "train", 5, 1), "anomaly")
    with pytest.raises(RequestError, match="the split 'test' has no anomaly"):
        examine(with_labels(data("anomaly"), "test", slice(None), 0), "anomaly")
    with pytest.raises(RequestError, match="expected 0 <= x0 < x1 <= 1"):
        examine(with_labels(data("detection"), "train", (5, 0), [1, 0.5, 0.1, 0.5, 0.6]), "detection")
    with pytest.raises(RequestError, match="a box of a class above 2"):
        examine(with_labels(data("detection"), "train", (5, 0), [3, 0.1, 0.1, 0.5, 0.6]), "detection")
    with pytest.raises(RequestError, match="is the same in every training sample"):
        examine(with_labels(data("multilabel"), "train", (slice(None), 1), 1), "multilabel")


def test_splits_of_other_shapes_or_none_are_refused():
    found = data()
    short = replace(found.test, inputs={"row": found.test.inputs["row"][:, :4]})
    with pytest.raises(RequestError, match=r"test: samples 'row' of shape \(4,\)"):
        examine(replace(found, test=short), "classification")
    with pytest.raises(RequestError, match="the split 'test' is empty"):
        examine(replace(found, test=found.test.take(slice(0, 0))), "classification")
    with pytest.raises(RequestError, match="19 rows of 'row' and 20 labels"):
        examine(
            replace(found, test=replace(found.test, inputs={"row": found.test.inputs["row"][1:]})), "classification"
        )


def test_two_splits_or_views_of_one_name_are_refused():
    found = data()
    with pytest.raises(
        RequestError, match=r"two splits or views are called 'train' \(the names are train, train, test"
    ):
        examine(replace(found, validation=replace(found.validation, name="train")), "classification")
    with pytest.raises(RequestError, match="two splits or views are called 'test'"):
        examine(replace(found, views=(found.test.take(slice(0, 9)),)), "classification")


def test_a_view_may_share_rows_and_groups_with_the_test_split_and_no_other():
    found = data()
    people = {"train": "abc", "validation": "def", "test": "ghi"}
    parts = [replace(r, groups=np.array([people[r.name][i % 3] for i in range(len(r))]))
             for r in (found.train, found.validation, found.test)]  # fmt: skip
    found = Data(*parts, "0" * 64, found.labels)

    def viewed(i: int, group: str, source: Labelled) -> Data:
        groups = found.test.groups.copy()
        groups[0] = group
        rows = found.test.inputs["row"].copy()
        rows[4] = source.inputs["row"][i]
        return replace(found, views=(replace(found.test, name="sensor", inputs={"row": rows}, groups=groups),))

    assert examine(viewed(4, "h", found.test), "classification").rows == (60, 20, 20)
    for source in (found.train, found.validation):
        with pytest.raises(
            RequestError, match=rf"leak: test.csv:6 in sensor is the same sample as {source.name}.csv:4"
        ):
            examine(viewed(2, "h", source), "classification")
    for group, split in (("a", "train"), ("d", "validation")):
        with pytest.raises(RequestError, match=f"leak: group '{group}' is in {split} and in sensor"):
            examine(viewed(4, group, found.test), "classification")
    learned = replace(viewed(4, "h", found.test), unlabelled={"row": found.test.inputs["row"][4:5] + 0})
    with pytest.raises(RequestError, match="unlabelled rows are learned from"):
        examine(learned, "classification")


def test_an_unlabelled_row_that_is_judged_on_is_a_leak():
    found = data()
    other = np.random.default_rng(9).normal(size=(8, 5)).astype(np.float32)
    learned = {"row": np.concatenate([other, found.train.inputs["row"][:3]])}
    examine(replace(found, unlabelled=learned), "classification")  # learned from in either case
    for rows in (found.validation, found.test):
        mixed = {"row": np.concatenate([other, rows.inputs["row"][4:5]])}
        with pytest.raises(RequestError, match=f"leak: unlabelled\\[8\\] is the same sample as {rows.name}.csv:6 in"):
            examine(replace(found, unlabelled=mixed), "classification")
    with pytest.raises(RequestError, match=r"leak: unlabelled\[2\] is the same sample as reference\[0\]"):
        examine(replace(found, unlabelled={"row": other}, reference={"row": other[2:]}), "classification")


def test_a_reference_row_that_was_learned_from_is_a_leak():
    found = data()
    held = np.concatenate([found.validation.inputs["row"], found.test.inputs["row"], found.test.inputs["row"] * 2])
    examine(replace(found, reference={"row": held}), "classification")
    held[7] = found.train.inputs["row"][11]
    with pytest.raises(RequestError, match=r"leak: reference\[7\] is .* train.csv:13 in train: .* no weight was"):
        examine(replace(found, reference={"row": held}), "classification")


@pytest.mark.parametrize("role", ["unlabelled", "reference"])
def test_rows_without_labels_are_checked_like_the_others(role):
    found, rows = data(), np.random.default_rng(9).normal(size=(8, 5)).astype(np.float32)
    for bad, message in (
        ({"row": rows[:, :4]}, rf"{role}: samples 'row' of shape \(4,\)"),
        ({"row": rows.astype(np.float64)}, f"{role}: 'row' is float64; training samples are float32"),
        ({"row": rows[:0]}, f"{role}: no row in it"),
        ({"row": np.where(rows > 0, np.float32(np.nan), rows)}, rf"{role}\[0\]: nan"),
        ({"line": rows}, f"{role}: samples 'line'"),
    ):
        with pytest.raises(RequestError, match=message):
            examine(replace(found, **{role: bad}), "classification")
