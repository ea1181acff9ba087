"""Where a training run is kept between two processes.

Guarantee: a checkpoint is whole or absent (written beside, flushed, renamed), and one of another run, another version
of torch or cut short is not used. It holds tensors and plain values only and is read as such: opening one runs no code.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import Unavailable

from ..recipe import Schedule


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the loop knows after some epochs, beside the states of net and optimiser."""

    losses: tuple[float, ...]
    figures: tuple[float, ...]
    best: float | None
    best_epoch: int
    weights: dict[str, Tensor] | None  # of the best epoch, where they are kept

    @classmethod
    def start(cls) -> Checkpoint:
        return cls((), (), None, 0, None)

    def waited(self, patience: int | None) -> bool:
        """Whether `patience` epochs went by without a better figure."""
        return patience is not None and len(self.losses) - 1 - self.best_epoch >= patience and bool(self.losses)

    def after(self, loss: float, figure: float | None, net: nn.Module | None) -> Checkpoint:
        """One epoch later; `net` is given when the best weights are to be kept."""
        epoch, losses = len(self.losses), (*self.losses, loss)
        if figure is None:
            return replace(self, losses=losses, best_epoch=epoch)
        seen = replace(self, losses=losses, figures=(*self.figures, figure))
        if net is None:
            return replace(seen, best_epoch=epoch)
        if self.best is not None and figure <= self.best:
            return seen
        weights = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        return replace(seen, best=figure, best_epoch=epoch, weights=weights)


def fingerprint(net: nn.Module, schedule: Schedule, seed: int, rows: int) -> str:
    """Of everything cheap that a resumed run must share with the one that wrote the checkpoint."""
    shapes = [(name, tuple(value.shape)) for name, value in net.state_dict().items()]
    return hashlib.sha256(repr((torch.__version__, seed, rows, asdict(schedule), shapes)).encode()).hexdigest()


def store(path: Path, key: str, state: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Write atomically. Raises Unavailable when the disk does not take it."""
    part = path.with_suffix(f".{os.getpid()}.part")
    fields = {name: getattr(state, name) for name in Checkpoint.__dataclass_fields__}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"key": key, "run": fields, **{n: p.state_dict() for n, p in parts.items()}}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with suppress(OSError):
            part.unlink()
        raise Unavailable(
            f"{path}: the training checkpoint cannot be written ({error}); free space and resume"
        ) from error


def restore(path: Path, key: str, parts: Mapping[str, Any]) -> Checkpoint | None:
    """Load every part in place and give the run's state; None when there is no checkpoint of this run."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return None  # not whole: training starts at the beginning
    if saved.get("key") != key:
        return None
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    run = saved["run"]
    return Checkpoint(**{**run, "losses": tuple(run["losses"]), "figures": tuple(run["figures"])})


def discard(path: Path) -> None:
    path.unlink(missing_ok=True)
