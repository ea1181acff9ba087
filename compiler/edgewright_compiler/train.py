"""The training loop: any model, any loss, one thread, one seed, and a callback for whoever waits.

Guarantee: on one machine and one version of torch, equal seeds give equal weights, bit for bit. One thread is a choice
of speed too: on small models several threads cost more than they bring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (inputs, logits, labels) → scalar
Draw = Callable[[int], tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]  # epoch → its inputs and labels


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, deterministic kernels and a seed inside the block; what was set before returns behind it."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.get_rng_state()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.set_rng_state(state)


def cross_entropy(_inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels)


def train(
    model: nn.Module,
    draw: Draw,
    loss: Loss,
    *,
    epochs: int,
    progress: Callable[[float], None],
    rate: float = 3e-3,
    batch: int = 64,
) -> None:
    """Adam under a one-cycle rate; `model` gives (logits, embedding) and is left in eval mode."""
    inputs, labels = draw(0)
    steps = epochs * -(-len(labels) // batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        progress(epoch / epochs)
        if epoch:
            inputs, labels = draw(epoch)
        x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
        for rows in torch.split(torch.randperm(len(y)), batch):
            optimiser.zero_grad()
            loss(x[rows], model(x[rows])[0], y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    progress(1.0)
    model.eval()


@torch.no_grad()
def predict(
    model: nn.Module, inputs: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(logits, embedding) of all rows, in eval mode."""
    model.eval()
    parts = [model(x) for x in torch.split(torch.from_numpy(inputs), 1024)]
    return torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy()
