"""Structured pruning: whole channels go, so that the net is smaller and faster without a sparse kernel.

Asked for is what remains (a share of products, of bytes, of measured time), not a ratio. Channels are taken in single
steps, one group of channels at a time down to the next multiple of `round_to`, all groups at about the same pace and,
where several could go, the one of least importance; the fewest steps that reach the target are found by bisection.
Counts stay multiples of `round_to`, because onnxruntime's blocked convolutions pad to 8 anyway: a net of 12 channels
was measured slower than one of 16. No group goes below one `round_to`. A pruned net has lost its accuracy until it is
trained again.

A pruned net is kept as its cuts and its tensors, without pickle, and comes back from the builder of the untrained one.
"""

from __future__ import annotations

import copy
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import Refused, RequestError, Unavailable

from ..measuring.counted import counted
from ..recipe import Prune
from .channels import Cut, Group, Round, Rounds, apply, recorded, replay, survey

Cost = Callable[[nn.Module], float]  # products, bytes or seconds of one net
_ROUNDS: Final = "rounds.json"
_STATE: Final = "state/"


@dataclass(frozen=True, slots=True)
class Pruned:
    """`channels`: layer → (before, after) of all that could lose some; `left`: layer → why it could not. Costs are
    those of the net before and after this round; `rounds` is the whole history, for `save_net`."""

    channels: dict[str, tuple[int, int]]
    left: dict[str, str]
    before: float
    after: float
    rounds: Rounds


def ladder(plan: Prune) -> dict[float, tuple[float, ...]]:
    """Share → the shares that its rounds come down to, each in equal proportion from the share before.

    Raises RequestError for shares that are not in (0, 1), or do not fall.
    """
    if plan.rounds < 1 or plan.round_to < 1:
        raise RequestError(f"prune: expected rounds and round_to of at least 1, got {plan.rounds}, {plan.round_to}")
    steps, above = {}, 1.0
    for share in plan.shares:
        if not 0 < share < above:
            raise RequestError(f"prune: expected shares that fall from below 1 to above 0, got {plan.shares}")
        steps[share] = (*(above * (share / above) ** (i / plan.rounds) for i in range(1, plan.rounds)), share)
        above = share
    return steps


def cost_of(target: str, example: Tensor) -> Cost:
    """What `target` counts: macs, or size (bytes of parameters and buffers as they are). Latency is measured by whoever
    can export the net; raises RequestError for it."""
    if target == "macs":
        return lambda net: float(counted(net, example).macs)
    if target == "size":
        return lambda net: float(sum(t.numel() * t.element_size() for t in net.state_dict().values()))
    raise RequestError(f"prune: expected a target among macs, size (or a cost that measures {target}), got {target}")


def prune(
    net: nn.Module,
    example: Tensor,
    *,
    cost: Cost,
    whole: float,
    share: float,
    round_to: int = 8,
    rounds: Rounds = (),
) -> Pruned:
    """Take channels out of `net`, in place, until its cost is at most `share` of `whole`.

    `rounds` is the history of earlier calls on this net. Raises Refused, with the net as it was, when the target is out
    of reach: the least cost, and the layers that stand in the way.
    """
    groups, left = survey(net, example)
    steps, before = _steps(groups, round_to), cost(net)

    def after(count: int) -> float:
        trial = copy.deepcopy(net)
        apply(trial, example, _cuts(groups, steps[:count]))
        return cost(trial)

    low, high, reached = 0, len(steps), before
    if before > share * whole:
        reached = after(high) if steps else before
        if reached > share * whole:
            raise Refused(_out_of_reach(share, reached / whole, round_to, left))
        while high - low > 1:  # `low` steps are too few, `high` are enough
            middle = (low + high) // 2
            found = after(middle)
            if found <= share * whole:
                high, reached = middle, found
            else:
                low = middle
    else:
        high = 0
    cuts = _cuts(groups, steps[:high])
    apply(net, example, cuts)
    gone = {cut.root: len(cut.channels) for cut in cuts}
    channels = {name: (g.channels, g.channels - gone.get(g.root, 0)) for g in groups for name in g.layers}
    return Pruned(channels, left, before, reached, (*rounds, *recorded(example, cuts)))


@dataclass(frozen=True, slots=True)
class _Step:
    ratio: float  # of the group's channels that are gone after this step
    lost: float  # share of the group's importance that goes with them
    group: int
    kept: int


def _steps(groups: tuple[Group, ...], round_to: int) -> list[_Step]:
    """All single steps, in the order in which they are taken; those of one group come in order."""
    steps = []
    for i, group in enumerate(groups):
        total = sum(group.importance) or 1.0
        for kept in range((group.channels - 1) // round_to * round_to, 0, -round_to):
            lost = sum(group.importance[c] for c in group.order[: group.channels - kept]) / total
            steps.append(_Step(1 - kept / group.channels, lost, i, kept))
    return sorted(steps, key=lambda step: (step.ratio, step.lost, step.group))


def _cuts(groups: tuple[Group, ...], steps: list[_Step]) -> tuple[Cut, ...]:
    kept = {step.group: step.kept for step in steps}
    return tuple(
        Cut(group.root, tuple(sorted(group.order[: group.channels - kept[i]])))
        for i, group in enumerate(groups)
        if i in kept
    )


def _out_of_reach(share: float, least: float, round_to: int, left: dict[str, str]) -> str:
    stay = [f"{name}: {reason}" for name, reason in left.items()]
    return (
        f"prune: expected {share:.0%} of the whole net to remain, and {least:.0%} is the least with channels in "
        f"multiples of {round_to}; ask for a larger share or a narrower net"
        + (
            f" (left as they are: {'; '.join(stay[:4])}{f'; and {len(stay) - 4} more' if stay[4:] else ''})"
            if left
            else ""
        )
    )


def save_net(path: Path, net: nn.Module, rounds: Rounds = ()) -> None:
    """Weights and cuts, atomically; equal bytes for equal nets. Raises Unavailable when the disk does not take it."""
    part = path.with_suffix(f".{os.getpid()}.part")
    arrays = {_STATE + name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
    history = np.frombuffer(json.dumps([asdict(one) for one in rounds]).encode(), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_ROUNDS: history}, **arrays)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise Unavailable(f"{path}: the net cannot be written ({error}); free space and run again") from error


def load_net(path: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """The net that was saved, from the builder of the untrained one; in eval mode.

    Raises RequestError when the file is none of `save_net`'s, or of another net than `build` makes.
    """
    rounds, state = _read(path)
    with torch.random.fork_rng(devices=[]):  # the builder's random weights are thrown away
        net = build()
    try:
        replay(net, rounds)
        net.load_state_dict(state)
    except (RuntimeError, Refused, RequestError) as error:
        said = " ".join(str(error).split())[:300]
        raise RequestError(
            f"{path}: expected the weights of what the recipe builds, got another net's: {said}"
        ) from error
    return net.eval()


def load_rounds(path: Path) -> Rounds:
    """The cuts of a saved net, to go on from."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Rounds, dict[str, Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            rounds = tuple(_round(one) for one in json.loads(file[_ROUNDS].tobytes()))
            state = {n.removeprefix(_STATE): torch.from_numpy(file[n]) for n in file.files if n.startswith(_STATE)}
    except FileNotFoundError:
        raise RequestError(f"{path}: expected a saved net, got nothing there") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: expected a net as save_net writes it, got a file that is none: {error}") from error
    return rounds, state


def _round(fields: dict[str, Any]) -> Round:
    cuts = tuple(Cut(one["root"], tuple(one["channels"])) for one in fields["cuts"])
    return Round(tuple(fields["shape"]), fields["dtype"], cuts)
