"""Which channels of a net hang together, and taking some of them away.

Channels are found by torch-pruning's dependency graph (Fang et al., DepGraph, 2023). Guarantee: a group is offered only
after a trial on a copy has shown that what the graph says is true: without the group's last channels the copy answers
in the same shape, and, unless a layer norm lies between, the same numbers as with the weights that read them at zero.
Recurrent and attention layers keep all they have, and so does what is added to what they read; each such layer is named
with its reason. Cost: one trace and two runs of the net for each group, milliseconds on small nets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils import _pytree

from edgewright_contracts.errors import EdgewrightError, Refused, RequestError

FIXED: Final = (nn.GRU, nn.LSTM, nn.RNN, nn.MultiheadAttention)  # neither their inputs nor their outputs are cut
ROOTS: Final = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
_READERS: Final = (nn.modules.conv._ConvNd, nn.Linear)
TOLERANCE: Final = 1e-3  # of the largest answer; float32 sums in another order stay far below


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must go together. `order` has all of them, the least important first; `layers` are those that
    lose outputs, in the order of the net."""

    root: str
    layers: tuple[str, ...]
    channels: int
    order: tuple[int, ...]
    importance: tuple[float, ...]  # by channel, mean 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Output channels of layer `root`, and with them all that hangs on them."""

    root: str
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """Cuts made at once, and the shape and dtype of the example that the net was traced on."""

    shape: tuple[int, ...]
    dtype: str
    cuts: tuple[Cut, ...]


Rounds = tuple[Round, ...]  # all cuts of a net since it was built


def survey(net: nn.Module, example: Tensor) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Groups that can lose channels, in the order of the net, and layer → reason of those that cannot.

    Raises Refused when the net cannot be traced.
    """
    found: list[Group] = []
    left: dict[str, str] = {
        name: f"{type(module).__name__} keeps its channels"
        for name, module in net.named_modules()
        if isinstance(module, FIXED)
    }
    with _graph(net, example) as graph:
        names = {module: name for name, module in net.named_modules()}
        places = {name: i for i, name in enumerate(names.values())}
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        candidates: list[tuple[str, list[str], str, Tensor | None]] = []
        for group in graph.get_all_groups(root_module_types=ROOTS):
            layers = sorted({names[m] for m in _losing(graph, group) if isinstance(m, ROOTS)}, key=places.__getitem__)
            reason, scores = _obstacle(group, names), None
            if not reason:
                with suppress(IndexError, RuntimeError):  # where the graph has the wrong idea of a reshaping
                    scores = importance(group)
            candidates.append((names[group[0].dep.target.module], layers, reason, scores))
    for root, layers, reason, scores in sorted(candidates, key=lambda one: places[one[0]]):
        if scores is None or (reason := reason or _trial(net, example, root, len(scores))):
            left.update(dict.fromkeys(layers, reason or "its channels cannot be ranked"))
            continue
        scores = scores.detach().double().nan_to_num(0.0)
        order = torch.argsort(scores, stable=True)
        found.append(Group(root, tuple(layers), len(scores), tuple(order.tolist()), tuple(scores.tolist())))
    seen = {*left, *(name for group in found for name in group.layers)}
    for name, module in net.named_modules():
        if isinstance(module, ROOTS) and name not in seen and not _inside_fixed(net, name):
            left[name] = "the answer's gradient does not reach it"
    return tuple(found), dict(sorted(left.items(), key=lambda one: places[one[0]]))


def apply(net: nn.Module, example: Tensor, cuts: tuple[Cut, ...]) -> None:
    """Take these channels out of `net`, in place. Parameters are new objects; what learned before still does."""
    learning = {name: p.requires_grad for name, p in net.named_parameters()}
    with _graph(net, example) as graph:
        for cut in cuts:
            _group(graph, net, cut).prune(record_history=False)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(learning[name])
        parameter.grad = None


def recorded(example: Tensor, cuts: tuple[Cut, ...]) -> Rounds:
    """A round of these cuts, or none where nothing is cut."""
    return (Round(tuple(example.shape), str(example.dtype).removeprefix("torch."), cuts),) if cuts else ()


def replay(net: nn.Module, rounds: Rounds) -> None:
    """Do to an untrained net what was done to another one of the same builder."""
    for one in rounds:
        apply(net, torch.zeros(one.shape, dtype=getattr(torch, one.dtype)), one.cuts)


def _group(graph: Any, net: nn.Module, cut: Cut) -> Any:
    try:
        module = net.get_submodule(cut.root)
        return graph.get_pruning_group(
            module, graph.get_pruner_of_module(module).prune_out_channels, list(cut.channels)
        )
    except (AttributeError, ValueError) as error:
        raise RequestError(
            f"pruning: expected a layer {cut.root} in {type(net).__name__}, got a net without"
        ) from error


def _losing(graph: Any, group: Any) -> Iterator[nn.Module]:
    for dep, _ in group:
        if isinstance(dep.target.module, nn.Module) and graph.is_out_channel_pruning_fn(dep.handler):
            yield dep.target.module


def _obstacle(group: Any, names: dict[nn.Module, str]) -> str:
    """Why this group is not even tried; empty when it is."""
    for dep, _ in group:
        module = dep.target.module
        name = names.get(module, "")
        if isinstance(module, FIXED):
            return f"its channels meet {name} ({type(module).__name__})"
        if isinstance(module, nn.GroupNorm):
            return f"its channels meet {name} (GroupNorm, whose groups must stay of one size)"
        if _per_channel(module) and not module.groups == module.in_channels == module.out_channels:
            return f"its channels meet {name} (a convolution in {module.groups} groups)"
    return ""


def _trial(net: nn.Module, example: Tensor, root: str, channels: int) -> str:
    """Half of the group goes, on a copy. Empty when all is well, else the reason why the group must stay."""
    if channels < 2:
        return "it has one channel"
    probe, trial, gone = _probe(example), copy.deepcopy(net).eval(), channels // 2
    with torch.no_grad():
        before = trial(probe)
    with _graph(trial, example) as graph:
        group = _group(graph, trial, Cut(root, tuple(range(channels - gone, channels))))
        exact = not any(isinstance(dep.target.module, nn.LayerNorm) for dep, _ in group)
        try:
            with torch.no_grad():
                _silence(graph, group)
                wanted = trial(probe) if exact else before
                group.prune(record_history=False)
                if graph.get_out_channels(trial.get_submodule(root)) != channels - gone:
                    return "some of its channels cannot go without others"
                found = trial(probe)
        except Exception as error:  # whatever a net throws whose layers no longer fit together means the same
            return f"the net does not run without some of its channels ({str(error).splitlines()[0][:60]})"
    if found.shape != before.shape:
        return "the answer is made of its channels"
    if exact and float((found - wanted).abs().max()) > TOLERANCE * max(1e-6, float(wanted.abs().max())):
        return "its channels are mixed in a way that the dependency graph does not see"
    return ""


def _probe(example: Tensor) -> Tensor:
    """With noise, where it is not ids: an example of zeros would hide a channel that went astray."""
    if not example.is_floating_point():
        return example
    return example + torch.randn(example.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)


def _inside_fixed(net: nn.Module, name: str) -> bool:
    above = [name[:at] for at, letter in enumerate(name) if letter == "."]
    return any(isinstance(net.get_submodule(path), FIXED) for path in above)


def _per_channel(module: Any) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def _silence(graph: Any, group: Any) -> None:
    """Every weight that reads one of these channels becomes zero."""
    for dep, at in group:
        reader = dep.target.module
        if isinstance(reader, _READERS) and graph.is_in_channel_pruning_fn(dep.handler) and not _per_channel(reader):
            transposed = isinstance(reader, nn.modules.conv._ConvTransposeNd)
            reader.get_parameter("weight")[(at,) if transposed else (slice(None), at)] = 0.0


@contextmanager
def _graph(net: nn.Module, example: Tensor) -> Iterator[Any]:
    """The dependency graph of `net` in eval mode; each fixed layer is one node in it."""
    training, learning = net.training, [(p, p.requires_grad) for p in net.parameters()]
    fixed = [module for module in net.modules() if isinstance(module, FIXED)]
    net.eval().requires_grad_(True)  # the graph is read off the gradient's
    for module in fixed:
        module.forward = _as_one_node(module)  # type: ignore[method-assign]
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                net,
                example_inputs=example,
                forward_fn=lambda traced, x: traced(x),
                customized_pruners={kind: _Fixed() for kind in dict.fromkeys((*FIXED, *map(type, fixed)))},
                verbose=False,
            )
        yield graph
    except EdgewrightError:
        raise
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused(
            f"pruning: {type(net).__name__} cannot be traced by torch-pruning ({said}); compile it without pruning"
        ) from error
    finally:
        for module in fixed:
            del module.forward
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
        net.train(training)


class _Fixed(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Where the graph ends: a layer that is never cut, whose inputs and outputs have nothing to do with each other."""

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        raise RuntimeError(f"{type(layer).__name__} is not cut")

    def prune_in_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        raise RuntimeError(f"{type(layer).__name__} is not cut")

    def get_out_channels(self, layer: nn.Module) -> int:
        if isinstance(layer, nn.MultiheadAttention):
            return int(layer.embed_dim)
        assert isinstance(layer, nn.RNNBase)
        return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)

    def get_in_channels(self, layer: nn.Module) -> int:
        if isinstance(layer, nn.MultiheadAttention):
            return int(layer.embed_dim)
        assert isinstance(layer, nn.RNNBase)
        return int(layer.input_size)


def _as_one_node(module: nn.Module) -> Any:
    """Its forward as one node of the gradient's graph: a GRU over 100 steps is thousands of them otherwise."""
    real, parameter = module.forward, next(module.parameters())

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            out = real(*args, **kwargs)
        leaves, spec = _pytree.tree_flatten(out)
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        read = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tensors = _Node.apply(len(at), *(leaves[i] for i in at), parameter, *read)  # type: ignore[no-untyped-call]
        for i, tensor in zip(at, tensors, strict=True):
            leaves[i] = tensor
        return _pytree.tree_unflatten(leaves, spec)

    return forward


class _Node(torch.autograd.Function):
    """The first `count` tensors, as if made of all the others."""

    @staticmethod
    def forward(_ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> Any:
        raise NotImplementedError
