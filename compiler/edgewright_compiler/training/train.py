"""The training loop: any net, any loss, one seed, and a callback for whoever waits.

Guarantee: on one machine and one version of torch, equal (net, rows, schedule, seed) give equal weights, bit for bit,
and so does a run that was killed and resumed from its checkpoint. On a CPU it uses one thread, which on small nets is
a choice of speed too; where CUDA is, it trains there in mixed precision, and gives the net back to the CPU. Kernels of
CUDA that have no deterministic form are used nevertheless, with torch's warning.

Cost: beside the rows of a draw, as they are, only one batch of what the front makes of them is held.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import Refused, RequestError

from ..graph.reference import batch_size
from ..graph.tap import Tapped
from ..recipe import Schedule
from ..rows import Array
from .checkpoints import Checkpoint, discard, fingerprint, restore, store
from .draws import Draw, as_tensor, generator
from .finetune import last_layer_only
from .schedules import check, optimiser_of, rates_of

CHECKPOINT_S: Final = 30.0
_MISFITS: Final = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # what torch says to a wrong shape


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows of one draw: raw as a device hands them over, what the front makes of them, and their labels; and
    which draw it is, with their places in it."""

    raw: Tensor
    x: Tensor
    labels: Tensor
    epoch: int = 0
    at: Tensor | None = None


Progress = Callable[[float], None]  # the share of this step that is done, 0..1
Loss = Callable[[Batch, Tensor, Tensor], Tensor]  # (batch, answer, embedding [n, d]) → scalar; may have parameters
Validate = Callable[[nn.Module], float]  # larger is better


@dataclass(frozen=True, slots=True)
class History:
    """By epoch: the mean loss, and the validation figure where one is asked for. `best` is the epoch whose weights
    the net has now."""

    losses: tuple[float, ...]
    figures: tuple[float, ...]
    best: int


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, deterministic kernels and a seed inside the block; what was set before returns behind it."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.get_rng_state()
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.set_rng_state(state)


def train(
    net: nn.Module,
    front: nn.Module,
    draw: Draw,
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress,
    validate: Validate | None = None,
    checkpoint: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> History:
    """Train `net` in place, on what `front` makes of the rows; it is left in eval mode, on the CPU.

    With `patience` the weights of the best epoch are kept. A `loss` that is a module has parameters of its own, which
    learn too; it is called once on two rows before the first step, so that it may make them. `checkpoint` is written at
    epoch ends, at most every 30 s of `clock`, and removed when the run is done.

    Raises RequestError for a schedule that cannot run or a net that does not fit the rows, Refused for a loss or a
    validation figure that is not a number.
    """
    check(schedule)
    if schedule.patience is not None and validate is None:
        raise RequestError(f"schedule: patience {schedule.patience} needs a validation figure, got none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with reproducible(seed), torch.enable_grad():
        front, tapped = front.to(device).eval(), Tapped(net.to(device))
        raw, labels = draw(0)
        layout = _rehearse(tapped, front, loss, raw[:2], labels[:2], device)
        run = _Run(tapped, front, loss, schedule, seed, len(labels), device, layout)
        key = fingerprint(net, schedule, seed, len(labels))
        state = (
            Checkpoint.start() if checkpoint is None else restore(checkpoint, key, run.parts()) or Checkpoint.start()
        )
        written = clock()
        for epoch in range(len(state.losses), schedule.epochs):
            if state.waited(schedule.patience):
                break
            if epoch:
                raw, labels = draw(epoch)
            mean = run.epoch(epoch, raw, labels, progress)
            net.eval()
            figure = None if validate is None else _finite(validate(net), epoch)
            state = state.after(mean, figure, net if schedule.patience is not None else None)
            if checkpoint is not None and clock() - written >= CHECKPOINT_S:
                store(checkpoint, key, state, run.parts())
                written = clock()
        if state.weights is not None:
            net.load_state_dict(state.weights)
        for parameter in run.learning:
            parameter.requires_grad_(True)
        _laid_out(net.cpu().eval(), torch.contiguous_format)
        front.cpu()
    if checkpoint is not None:
        discard(checkpoint)
    progress(1.0)
    return History(tuple(state.losses), tuple(state.figures), state.best_epoch)


class _Run:
    """What lives as long as the loop: the optimiser, its rates, and the scaler of mixed precision."""

    def __init__(
        self,
        tapped: Tapped,
        front: nn.Module,
        loss: Loss,
        schedule: Schedule,
        seed: int,
        rows: int,
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.tapped, self.front, self.loss, self.schedule, self.seed = tapped, front, loss, schedule, seed
        self.rows, self.device, self.layout = rows, device, layout
        self.net: nn.Module = tapped.net
        self.learning = [p for p in self.net.parameters() if p.requires_grad]
        if not self.learning:
            raise RequestError("training: expected a net with parameters that require a gradient, got none")
        if isinstance(loss, nn.Module):
            loss.to(device)
        extra = list(loss.parameters()) if isinstance(loss, nn.Module) else []
        self.clipped = [*self.learning, *extra]
        self.cuts = _cuts(rows, schedule.batch)
        self.optimiser = optimiser_of(self.clipped, schedule)
        self.rates = rates_of(self.optimiser, schedule, schedule.epochs * (len(self.cuts) + 1))
        self.amp = device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp)
        self.half = self.amp or (schedule.mixed and bfloat16_here())

    def parts(self) -> dict[str, object]:
        """Everything that has a state_dict, by name."""
        loss = {"loss": self.loss} if isinstance(self.loss, nn.Module) else {}
        return {"net": self.net, "optimiser": self.optimiser, "rates": self.rates, "scaler": self.scaler, **loss}

    def epoch(self, epoch: int, raw: Array, labels: Array, progress: Progress) -> float:
        """One pass over a draw. Randomness depends on (seed, epoch) alone, so no generator needs to be saved."""
        if len(labels) != self.rows or len(raw) != self.rows:
            raise RequestError(f"draw {epoch}: expected {self.rows} rows as in draw 0, got {len(raw)}, {len(labels)}")
        torch.manual_seed(int(generator(self.seed, "torch", epoch).integers(2**62)))
        all_raw, all_labels = as_tensor(raw), as_tensor(labels)
        order = torch.from_numpy(generator(self.seed, "order", epoch).permutation(self.rows))
        self._mode(frozen=epoch < self.schedule.frozen_epochs, example=self._fronted(all_raw[:1]))
        total, parts = 0.0, torch.tensor_split(order, self.cuts)
        for i, rows in enumerate(parts):
            progress((epoch + i / len(parts)) / self.schedule.epochs)
            some = all_raw[rows]
            batch = Batch(some, self._fronted(some), all_labels[rows].to(self.device), epoch, rows)
            total += self._step(batch, epoch, i) * len(rows)
        return total / self.rows

    @torch.no_grad()
    def _fronted(self, raw: Tensor) -> Tensor:
        return self.front(raw.to(self.device)).to(memory_format=self.layout)  # type: ignore[no-any-return]

    def _step(self, batch: Batch, epoch: int, number: int) -> float:
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, enabled=self.half):  # float16 on CUDA, bfloat16 on a CPU
            answer, embedding = self.tapped(batch.x)
        loss = self.loss(batch, answer.float(), embedding.float())  # outside autocast: half is too coarse for a loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Refused(
                f"training: the loss is {value} in epoch {epoch}, batch {number}; a smaller rate (now "
                f"{self.schedule.rate:g}) or a bound on the gradient (clip) keeps it finite, unless the data has NaN"
            )
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.schedule.clip is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.clipped, self.schedule.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.rates.step()
        return value

    def _mode(self, *, frozen: bool, example: Tensor) -> None:
        for parameter in self.learning:
            parameter.requires_grad_(True)
        self.net.train()
        if frozen:
            last_layer_only(self.net, example)


def bfloat16_here() -> bool:
    """Whether this CPU multiplies in bfloat16 itself; where it does not, torch emulates it, many times slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def answers(net: nn.Module, front: nn.Module, raw: Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(answer, embedding [n, d]) of all raw rows, in eval mode, in chunks, on the device where the net is."""
    parameter = next(net.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    front, tapped = front.to(device).eval(), Tapped(net.eval())
    with reproducible(0), torch.no_grad():
        chunks = torch.split(as_tensor(raw), batch_size(math.prod(raw.shape[1:])))
        parts = [tapped(front(chunk.to(device))) for chunk in chunks]
    return (
        torch.cat([part[0].float().cpu() for part in parts]).numpy(),
        torch.cat([part[1].float().cpu() for part in parts]).numpy(),
    )


def _cuts(rows: int, batch: int) -> list[int]:
    """Where batches begin, the first left out; a single row at the end joins the batch before it, because batch
    normalisation cannot learn from one row."""
    return [at for at in range(batch, rows, batch) if rows - at > 1]


def _laid_out(net: nn.Module, layout: torch.memory_format) -> None:
    net.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs do not know it


@torch.no_grad()
def _rehearse(
    tapped: Tapped, front: nn.Module, loss: Loss, raw: Array, labels: Array, device: torch.device
) -> torch.memory_format:
    """Front, net and loss once, on two rows: what does not fit is said before anything is trained.

    Gives the layout that the net is trained in: channels last for images (a fifth to a third faster on a CPU), unless
    a view in the net or in the loss asks for rows as they are.
    """
    if len(labels) < 2:
        raise RequestError(f"training: expected at least 2 rows, got {len(labels)}")
    tapped.eval()

    def once(x: Tensor, layout: torch.memory_format) -> tuple[Batch, Tensor, Tensor]:
        _laid_out(tapped, layout)
        batch = Batch(as_tensor(raw), x.to(memory_format=layout), as_tensor(labels).to(device))
        return batch, *tapped(batch.x)

    try:
        x = front(as_tensor(raw).to(device))
        if x.ndim == 4:
            with suppress(*_MISFITS):
                loss(*once(x, torch.channels_last))
                return torch.channels_last
        rehearsed = once(x, torch.contiguous_format)
    except _MISFITS as error:
        got = f"rows {raw.dtype} {list(raw.shape)}"
        raise RequestError(
            f"the front and the net do not take {got} (first two of the training rows): {error}"
        ) from error
    try:
        loss(*rehearsed)
    except _MISFITS as error:
        answer, y = rehearsed[1], rehearsed[0].labels
        raise RequestError(
            f"the loss does not take an answer {list(answer.shape)} with labels {y.dtype} {list(y.shape)}: {error}"
        ) from error
    return torch.contiguous_format


def _finite(figure: float, epoch: int) -> float:
    if not math.isfinite(figure):
        raise Refused(f"training: the validation figure is {figure} after epoch {epoch}; look at the metric's inputs")
    return float(figure)
