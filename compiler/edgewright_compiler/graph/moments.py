"""Moments of training rows, as constants of a graph: in double precision, so that they do not depend on the order of
rows, and equal rows give equal constants.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgewright_contracts.errors import RequestError

Float = npt.NDArray[np.float64]

FLOOR: Final = 1e-6  # of a variance, where one would divide by it


def moments(x: Float) -> tuple[Float, Float]:
    """Mean and standard deviation of each column, of finite values; 1 for one that never varies."""
    finite = np.where(np.isfinite(x), x, np.nan)
    if np.isnan(finite).all(axis=0).any():
        raise RequestError("a channel of the training rows has no finite value: drop it, or repair the data")
    mean, deviation = np.nanmean(finite, axis=0), np.nanstd(finite, axis=0)
    return mean, np.where(deviation > FLOOR * np.maximum(1, np.abs(mean)), deviation, 1.0)


def principal(x: Float, components: int = 8) -> tuple[Float, Float]:
    """(project [d, k], offset [k]): x @ project + offset is PCA-k of rows [n, d] in standard deviations.

    k is `components`, or fewer where rows vary in fewer directions. Equal inputs give equal constants. Raises
    RequestError when no direction varies.
    """
    if len(x) < 2:
        raise RequestError(f"expected at least 2 rows without gaps to find directions in, got {len(x)}")
    mean = x.mean(axis=0)
    centred = x - mean
    if x.shape[1] <= len(x):
        values, vectors = np.linalg.eigh(centred.T @ centred / (len(x) - 1))
    else:  # the same directions out of the smaller matrix
        values, rows = np.linalg.eigh(centred @ centred.T / (len(x) - 1))
        vectors = centred.T @ rows / np.sqrt(np.maximum(values, np.finfo(float).tiny) * (len(x) - 1))
    top = np.argsort(values)[::-1][:components]
    top = top[values[top] > FLOOR * FLOOR + FLOOR * max(0.0, float(values[top[0]]))]
    if top.size == 0:
        raise RequestError(f"{len(x)} rows of {x.shape[1]} numbers never vary: there is nothing to monitor")
    basis = vectors[:, top]
    basis *= np.sign(basis[np.abs(basis).argmax(axis=0), range(len(top))])  # an eigenvector's sign is arbitrary
    project = basis / np.sqrt(values[top])
    return project, -mean @ project


def affine(weight: Float, bias: Float) -> nn.Linear:
    """x @ weight + bias, with constants."""
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer.requires_grad_(False)
