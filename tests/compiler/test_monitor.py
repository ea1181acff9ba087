"""The monitor's columns are what they say, and its constants are the same however the eigenvectors fall out."""

from __future__ import annotations

import numpy as np
import torch

from edgewright_compiler.monitor import COLUMNS, EmbeddingMonitor, ImageStatistics, OutputMonitor, fit_embedding

LEVELS = 16
RNG = np.random.default_rng(3)


def test_image_statistics_are_exact() -> None:
    x = RNG.integers(0, LEVELS + 1, (50, 8, 8))
    got = ImageStatistics(LEVELS, 8, 8)(torch.tensor(x[:, None], dtype=torch.float32)).numpy()
    dark_border = np.pad(x, ((0, 0), (0, 1), (0, 1)))
    expected = np.column_stack(
        [
            x.mean((1, 2)),
            np.maximum(-np.diff(dark_border, axis=1), 0)[:, :, :8].mean((1, 2)),
            np.maximum(-np.diff(dark_border, axis=2), 0)[:, :8].mean((1, 2)),
            (x == 0).mean((1, 2)),
            (x == LEVELS).mean((1, 2)),
            np.maximum(x - LEVELS // 2, 0).mean((1, 2)),
            x[:, :4].mean((1, 2)) - x[:, 4:].mean((1, 2)),
            x[:, :, :4].mean((1, 2)) - x[:, :, 4:].mean((1, 2)),
            x.mean(2).min(1),
        ]
    )
    assert (got == expected.astype(np.float32)).all()


def test_embedding_columns_are_pca_scores_and_mahalanobis_distances() -> None:
    labels = RNG.integers(0, 4, 600)
    e = RNG.normal(size=(600, 12)) @ RNG.normal(size=(12, 12)) + 3 * RNG.normal(size=(4, 12))[labels]
    constants = fit_embedding(e, labels)
    got = EmbeddingMonitor(constants)(torch.tensor(e, dtype=torch.float32)).numpy()
    scores, nearest, overall = got[:, :8].astype(np.float64), got[:, 8], got[:, 9]
    np.testing.assert_allclose(np.cov(scores.T), np.eye(8), atol=2e-3)
    assert (np.abs(scores.mean(0)) < 1e-4).all()
    centres = np.stack([scores[labels == c].mean(0) for c in range(4)])
    within = scores - centres[labels]
    inverse = np.linalg.inv(within.T @ within / len(e))
    np.testing.assert_allclose(overall, np.einsum("nd,de,ne->n", scores, inverse, scores), rtol=1e-2)
    away = scores[:, None] - centres[None]
    expected = np.einsum("ncd,de,nce->nc", away, inverse, away).min(1)
    np.testing.assert_allclose(nearest, expected, rtol=1e-2, atol=1e-3)


def test_a_dead_unit_in_the_embedding_gives_finite_constants() -> None:
    e = np.zeros((200, 9))
    e[:, :3] = RNG.normal(size=(200, 3))
    constants = fit_embedding(e, np.arange(200) % 2)
    assert all(np.isfinite(getattr(constants, name)).all() for name in ("project", "offset", "whiten", "centres"))


def test_entropy_is_finite_for_a_certain_answer_and_largest_for_none() -> None:
    logits = torch.tensor([[500.0, 0, 0, 0], [1.0] * 4])
    got = OutputMonitor(4)(logits, torch.softmax(logits, dim=1)).numpy()
    np.testing.assert_allclose(got, [[1, 0], [0.25, np.log(4)]], atol=1e-6)


def test_there_are_21_columns_with_distinct_names() -> None:
    assert len(COLUMNS) == len({name for name, _ in COLUMNS}) == 21
