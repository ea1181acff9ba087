"""Metrics against scikit-learn and by hand, a user's own, and confidences that mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from edgewright_compiler.measuring.calibration import ece, temperature
from edgewright_compiler.measuring.metrics import metric, value
from edgewright_contracts.errors import RequestError

RNG = np.random.default_rng(2)
LABELS = RNG.integers(0, 4, 300)
PROBABILITIES = np.eye(4)[LABELS] * 0.8 + RNG.random((300, 4))
MANY = (RNG.random((300, 3)) < 0.3).astype(np.float32)
MANY_P = np.clip(0.6 * MANY + 0.5 * RNG.random((300, 3)), 0, 1)


def test_classification_metrics_are_those_of_scikit_learn() -> None:
    outputs = {"probabilities": PROBABILITIES}
    told = PROBABILITIES.argmax(axis=1)
    assert value(metric("accuracy", "classification"), outputs, LABELS) == (told == LABELS).mean()
    f1 = value(metric("macro_f1", "classification"), outputs, LABELS)
    assert f1 == pytest.approx(f1_score(LABELS, told, average="macro"))
    shares = PROBABILITIES / PROBABILITIES.sum(axis=1, keepdims=True)
    auroc = value(metric("auroc", "classification"), {"probabilities": shares}, LABELS)
    assert auroc == pytest.approx(roc_auc_score(LABELS, shares, multi_class="ovr", average="macro"))


def test_multilabel_metrics_are_those_of_scikit_learn() -> None:
    outputs = {"probabilities": MANY_P}
    told = MANY_P >= 0.5
    assert value(metric("accuracy", "multilabel"), outputs, MANY) == pytest.approx((told == MANY).mean())
    f1 = value(metric("macro_f1", "multilabel"), outputs, MANY)
    assert f1 == pytest.approx(f1_score(MANY, told, average="macro"))
    auroc = value(metric("auroc", "multilabel"), outputs, MANY)
    assert auroc == pytest.approx(roc_auc_score(MANY, MANY_P, average="macro"))


def test_auroc_of_anomalies_counts_ties_half_and_weighs_rows() -> None:
    score = np.array([0.1, 0.4, 0.4, 0.4, 0.9, 0.2])
    labels = np.array([0, 0, 1, 0, 1, 1])
    one = metric("auroc", "anomaly")
    assert value(one, {"score": score}, labels) == pytest.approx(roc_auc_score(labels, score))
    counts = np.array([1, 3, 2, 0, 1, 2])
    again = np.repeat(np.arange(6), counts)
    weighted = one.score({"score": score}, labels)
    assert callable(weighted)
    assert weighted(counts.astype(np.float64)) == pytest.approx(roc_auc_score(labels[again], score[again]))


def test_mean_average_precision_by_hand() -> None:
    """Two images, two classes. Class 0: a hit at 0.9, a miss at 0.8, a hit at 0.7 of two boxes: 1/2 + 1/2 × 2/3.
    Class 1: its one box is found twice, the second time counts as a miss after all was found: 1."""
    boxes = np.zeros((2, 4, 4))
    boxes[0, 0], boxes[0, 1], boxes[0, 2] = (0, 0, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9), (0.5, 0.5, 1, 1)
    boxes[1, 0], boxes[1, 1] = (0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 1, 0.95)
    scores = np.array([[0.9, 0.8, 0.6, 0], [0.7, 0.5, 0, 0]])
    classes = np.array([[0, 0, 1, 0], [0, 1, 0, 0]])
    labels = np.full((2, 2, 5), -1.0)
    labels[0, 0] = (0, 0, 0, 0.5, 0.5)
    labels[0, 1] = (1, 0.5, 0.5, 1, 1)
    labels[1, 0] = (0, 0.1, 0.1, 0.4, 0.45)
    outputs = {"boxes": boxes, "scores": scores, "classes": classes}
    one = metric("map50", "detection")
    assert value(one, outputs, labels) == pytest.approx((1 / 2 + 1 / 2 * 2 / 3 + 1) / 2)
    weighted = one.score(outputs, labels)
    assert callable(weighted)
    assert weighted(np.array([2.0, 0.0])) == pytest.approx(1.0), (
        "the second image drawn never: its boxes are not missed"
    )
    nothing = {**outputs, "scores": np.zeros((2, 4))}
    assert value(one, nothing, labels) == 0


def test_average_precision_of_many_images_is_that_of_a_plain_count() -> None:
    """Against the definition, written without any vector: thresholds one by one, over random boxes on a coarse grid."""
    rng = np.random.default_rng(6)
    n, k, m = 40, 6, 3
    corner = rng.integers(0, 3, (n, m, 2)) / 4
    labels = np.concatenate([rng.integers(-1, 2, (n, m, 1)), corner, corner + 0.25], axis=2)
    place = rng.integers(0, 3, (n, k, 2)) / 4
    boxes = np.concatenate([place, place + rng.choice([0.25, 0.2, 0.1], (n, k, 1))], axis=2)
    scores, classes = rng.choice([0.2, 0.4, 0.6, 0.8], (n, k)), rng.integers(0, 2, (n, k))
    found = value(metric("map50", "detection"), {"boxes": boxes, "scores": scores, "classes": classes}, labels)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(w, 0) * max(h, 0)
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    areas = []
    for c in (0, 1):
        told, wanted = [], 0
        for i in range(n):
            free = [list(box[1:]) for box in labels[i] if box[0] == c]
            wanted += len(free)
            for d in sorted((d for d in range(k) if classes[i, d] == c), key=lambda d: -scores[i, d]):
                best = max(free, key=lambda box: iou(boxes[i, d], np.array(box)), default=None)
                hit = best is not None and iou(boxes[i, d], np.array(best)) >= 0.5
                if hit:
                    free.remove(best)
                told.append((scores[i, d], hit))
        points = []
        for threshold in sorted({s for s, _ in told}, reverse=True):
            kept = [hit for s, hit in told if s >= threshold]
            points.append((sum(kept) / wanted, sum(kept) / len(kept)))
        area, before = 0.0, 0.0
        for at, (recall, _) in enumerate(points):
            area += (recall - before) * max(precision for _, precision in points[at:])
            before = recall
        areas.append(area)
    assert found == pytest.approx(np.mean(areas))


def test_mae_is_in_the_labels_unit_and_its_points_in_per_cent_of_their_deviation() -> None:
    labels = np.array([[0.0], [2.0], [4.0]])
    one = metric("mae", "regression")
    assert value(one, {"values": labels + 0.5}, labels) == 0.5
    assert one.points(labels) == pytest.approx(100 / labels.std())
    with pytest.raises(RequestError, match="labels that vary, got one value in all 2 rows"):
        one.points(np.ones((2, 1)))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("precision", "classification", "unknown metric 'precision': expected one of accuracy, macro_f1, auroc"),
        ("map50", "classification", "map50 is for detection, this task is classification: expected accuracy or"),
        ("accuracy", "anomaly", "expected auroc or file.py:function"),
        ("nothing.py:f", "regression", "nothing.py: no such file; expected the Python file that defines 'f'"),
    ],
)
def test_a_metric_that_does_not_fit_names_those_that_do(name: str, task: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace(".", r"\.")):
        metric(name, task)  # type: ignore[arg-type]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        """
import numpy as np

def per_row(outputs, labels):
    return outputs["probabilities"].argmax(1) == labels

def whole(outputs, labels):
    return float((outputs["probabilities"].argmax(1) == labels).mean())

def cost(outputs, labels):
    return np.abs(outputs["values"] - labels)[:, 0]
cost.higher = False

def wrong(outputs, labels):
    return np.zeros((len(labels), 2))

def broken(outputs, labels):
    return outputs["logits"]

def hole(outputs, labels):
    return np.where(labels == 0, np.nan, 1.0)
"""
    )
    return path


def test_a_function_of_ones_own_is_per_row_or_per_set_by_what_it_returns(mine: Path) -> None:
    outputs = {"probabilities": PROBABILITIES}
    expected = value(metric("accuracy", "classification"), outputs, LABELS)
    for function in ("per_row", "whole"):
        one = metric(f"{mine}:{function}", "classification")
        assert value(one, outputs, LABELS) == expected
        assert callable(one.score(outputs, LABELS)) == (function == "whole")
    counts = RNG.integers(0, 3, 300).astype(np.float64)
    right = PROBABILITIES.argmax(axis=1) == LABELS
    weighted = metric(f"{mine}:whole", "classification").score(outputs, LABELS)
    assert callable(weighted)
    assert weighted(counts) == pytest.approx(counts @ right / counts.sum())
    assert not metric(f"{mine}:cost", "regression").higher


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", r"mine\.py: no 'absent' in it; it defines"),
        ("wrong", r"an array of 300 numbers \(one a row\) or one number, got ndarray of shape \(300, 2\)"),
        ("broken", r":\d+: broken\(\) raised KeyError: 'logits'; it is given outputs 'probabilities' float64 \[300, "),
        ("hole", "expected finite numbers, got nan for row"),
    ],
)
def test_a_function_that_is_none_is_told_with_its_name(mine: Path, function: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as told:
        value(metric(f"{mine}:{function}", "classification"), {"probabilities": PROBABILITIES}, LABELS)
    assert f"{mine}:{function}" in str(told.value)


def test_a_file_that_does_not_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(RequestError, match=r"metric .*bad\.py:1: does not import: ModuleNotFoundError"):
        metric(f"{tmp_path}/bad.py:f", "classification")


def test_a_missing_output_and_an_undefined_figure_are_refused() -> None:
    with pytest.raises(RequestError, match="expected an output 'probabilities' to score, got logits"):
        value(metric("accuracy", "classification"), {"logits": PROBABILITIES}, LABELS)
    with pytest.raises(RequestError, match="auroc is nan on these 3 rows"):
        value(metric("auroc", "anomaly"), {"score": np.zeros(3)}, np.zeros(3, np.int64))


def test_a_temperature_undoes_what_made_logits_too_sure() -> None:
    rng = np.random.default_rng(4)
    z = 2 * rng.standard_normal((4000, 5))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in p])
    found = temperature(3 * z, labels, "classification")
    assert found == pytest.approx(3, rel=0.05)
    sure = np.exp(3 * z) / np.exp(3 * z).sum(axis=1, keepdims=True)
    cooled = np.exp(3 * z / found) / np.exp(3 * z / found).sum(axis=1, keepdims=True)
    assert ece(sure, labels) > 0.15 > 0.03 > ece(cooled, labels)
    yes = (rng.random((4000, 2)) < 1 / (1 + np.exp(-z[:, :2]))).astype(np.float32)
    assert temperature(0.5 * z[:, :2], yes, "multilabel") == pytest.approx(0.5, rel=0.1)
    assert temperature(z, labels, "regression") == 1.0


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    labels = np.arange(40) % 4
    found = temperature(8.0 * np.eye(4)[labels], labels, "classification")
    assert found > 0.05
    p = np.exp(8 / found) / (np.exp(8 / found) + 3)
    assert 0.9 < p < 0.999
    with pytest.raises(RequestError, match="expected finite logits to calibrate on"):
        temperature(np.full((3, 2), np.nan), np.zeros(3, np.int64), "classification")


def test_the_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    assert ece(p, np.array([0, 1, 1, 1])) == pytest.approx((abs(2 * 0.9 - 1) + abs(2 * 0.6 - 2)) / 4)
    assert ece(np.array([[0.8], [0.2]]), np.array([[1.0], [1.0]])) == pytest.approx(abs(0.8 * 2 - 1) / 2)
