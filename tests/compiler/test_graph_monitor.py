"""The monitor's columns are what they say, and its constants are the same however the eigenvectors fall out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewright_compiler.graph.heads import Classes
from edgewright_compiler.graph.monitor import WIDE, EmbeddingMonitor, OutputMonitor, fit_embedding
from edgewright_contracts.errors import RequestError

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 4, 600)
E = RNG.normal(size=(600, 12)) @ RNG.normal(size=(12, 12)) + 3 * RNG.normal(size=(4, 12))[LABELS]


def test_embedding_columns_are_pca_scores_and_mahalanobis_distances() -> None:
    monitor = EmbeddingMonitor(fit_embedding(E, LABELS))
    assert monitor.names == (*(f"pca-{i + 1}" for i in range(8)), "distance-class", "distance-all")
    got = monitor(torch.tensor(E, dtype=torch.float32)).numpy()
    scores, nearest, overall = got[:, :8].astype(np.float64), got[:, 8], got[:, 9]
    np.testing.assert_allclose(np.cov(scores.T), np.eye(8), atol=2e-3)
    assert (np.abs(scores.mean(0)) < 1e-4).all()
    centres = np.stack([scores[c == LABELS].mean(0) for c in range(4)])
    within = scores - centres[LABELS]
    inverse = np.linalg.inv(within.T @ within / len(E))
    np.testing.assert_allclose(overall, np.einsum("nd,de,ne->n", scores, inverse, scores), rtol=1e-2)
    away = scores[:, None] - centres[None]
    expected = np.einsum("ncd,de,nce->nc", away, inverse, away).min(1)
    np.testing.assert_allclose(nearest, expected, rtol=1e-2, atol=1e-3)


def test_without_classes_there_is_one_distance() -> None:
    monitor = EmbeddingMonitor(fit_embedding(E, None))
    assert monitor.names[-2:] == ("pca-8", "distance-all")
    got = monitor(torch.tensor(E, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(got[:, 8], (got[:, :8] ** 2).sum(1), rtol=1e-2)


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_embedding_has_as_many_components_as_numbers(width: int) -> None:
    monitor = EmbeddingMonitor(fit_embedding(E[:, :width], LABELS))
    assert monitor.names == (*(f"pca-{i + 1}" for i in range(width)), "distance-class", "distance-all")
    assert monitor(torch.tensor(E[:, :width], dtype=torch.float32)).shape == (600, width + 2)


def test_dead_units_of_an_embedding_take_no_column() -> None:
    e = np.zeros((200, 9))
    e[:, :3] = RNG.normal(size=(200, 3))
    constants = fit_embedding(e, np.arange(200) % 2)
    assert constants.project.shape == (9, 3)
    assert all(np.isfinite(getattr(constants, name)).all() for name in ("project", "offset", "whiten", "centres"))


def test_of_a_wide_embedding_the_numbers_that_vary_most_are_looked_at() -> None:
    e = RNG.normal(size=(300, 1000)).astype(np.float32) * 0.01
    e[:, 300:500] += E[:300].repeat(17, axis=1)[:, :200].astype(np.float32)
    constants = fit_embedding(e, None)
    assert constants.chosen is not None
    assert len(constants.chosen) == WIDE
    assert set(range(300, 500)) <= set(constants.chosen.tolist())
    got = EmbeddingMonitor(constants)(torch.from_numpy(e)).numpy()
    np.testing.assert_allclose(np.cov(got[:, :8].T), np.eye(8), atol=2e-2)


def test_an_embedding_that_is_dead_or_not_finite_is_told() -> None:
    with pytest.raises(RequestError, match="the embedding of the training rows: 50 rows of 4 numbers never vary"):
        fit_embedding(np.ones((50, 4)), None)
    broken = E.copy()
    broken[17, 3] = np.nan
    with pytest.raises(RequestError, match="training row 17 has an embedding that is not finite"):
        fit_embedding(broken, None)


def test_equal_rows_give_equal_constants() -> None:
    a, b = fit_embedding(E, LABELS), fit_embedding(E.copy(), LABELS.copy())
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("project", "offset", "whiten"))


def test_entropy_is_finite_for_a_certain_answer_and_largest_for_none() -> None:
    logits = torch.tensor([[500.0, 0, 0, 0], [1.0] * 4])
    got = OutputMonitor(Classes(4, exclusive=True, temperature=1))(logits, torch.softmax(logits, dim=1)).numpy()
    np.testing.assert_allclose(got, [[1, 0], [0.25, np.log(4)]], atol=1e-6)


def test_confidence_and_entropy_are_those_of_the_scaled_answer() -> None:
    head = Classes(4, exclusive=True, temperature=2.5)
    logits = torch.randn(9, 4)
    (p,) = head(logits, logits)
    got = OutputMonitor(head)(logits, p)
    torch.testing.assert_close(got[:, 0], p.amax(1))
    torch.testing.assert_close(got[:, 1], -(p * p.log()).sum(1))


def test_the_entropy_of_several_labels_is_the_sum_of_theirs() -> None:
    head = Classes(3, exclusive=False, temperature=1.5)
    logits = torch.tensor([[0.0, 0, 0], [2, -1, 0.5], [400, -400, 0]])
    (p,) = head(logits, logits)
    got = OutputMonitor(head)(logits, p)[:, 1]
    q = torch.sigmoid(logits.double() / 1.5).clamp(1e-300, 1 - 1e-16)
    torch.testing.assert_close(got, (-(q * q.log() + (1 - q) * (1 - q).log())).sum(1).float(), atol=1e-4, rtol=1e-4)
