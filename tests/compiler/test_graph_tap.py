"""Any net gives its embedding beside its answer, keeps nothing of being watched, and a net that cannot says why."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from edgewright_compiler.graph.tap import Tapped, last_layer
from edgewright_contracts.errors import RequestError
from sim.nets import Cnn, Transformer, case, zoo

# name of the case → (last layer, size of what it reads)
READ = {
    "cnn": ("head", 24), "depthwise": ("head", 16), "gru": ("head", 16), "mlp": ("head", 32), "tagger": ("head", 32),
    "transformer": ("head", 16), "autoencoder": ("up.2", 32), "detector": ("head", 16),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_the_embedding_is_what_the_last_layer_reads(name: str) -> None:
    one = case(name)
    net = one.build().eval()
    layer, size = READ[name]
    answer, embedding = Tapped(net)(torch.from_numpy(one.rows))
    assert torch.equal(answer, net(torch.from_numpy(one.rows)))
    assert embedding.shape == (len(one.rows), size)
    assert last_layer(net, one.example)[0] == layer


def test_every_kind_of_net_is_covered() -> None:
    assert set(READ) == {one.name for one in zoo()}


def test_an_attribute_names_the_submodule_that_makes_the_embedding() -> None:
    net = Transformer().eval()
    ids = torch.from_numpy(case("transformer").rows)
    seen: list[Tensor] = []
    handle = net.pool.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, embedding = Tapped(net)(ids)
    handle.remove()
    assert torch.equal(embedding, seen[0])


def test_space_and_time_are_averaged_and_channels_are_kept() -> None:
    class Along(nn.Module):
        embedding = "body"

        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return (out[0] if isinstance(out, tuple) else out).flatten(1)

    image, series = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 7)
    conv2, conv1, gru = nn.Conv2d(3, 4, 3), nn.Conv1d(5, 4, 3), nn.GRU(7, 4, batch_first=True)
    assert torch.equal(Tapped(Along(conv2))(image)[1], conv2(image).mean((2, 3)))
    assert torch.equal(Tapped(Along(conv1))(series)[1], conv1(series).mean(2))
    assert torch.equal(Tapped(Along(gru))(series)[1], gru(series)[0].mean(1))
    assert torch.equal(Tapped(nn.Sequential(nn.Linear(7, 3), nn.Flatten()))(series)[1], series.mean(1))


def test_a_layer_called_embedding_names_nothing() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1))

    assert Tapped(Words())(torch.zeros(3, 4, dtype=torch.int64))[1].shape == (3, 6)


def test_watching_leaves_no_hook_and_a_copy_works_alone() -> None:
    tapped = Tapped(Cnn().eval())
    x = torch.from_numpy(case("cnn").rows[:4])
    before = tapped(x)
    twin = copy.deepcopy(tapped)
    with torch.no_grad():
        twin.net.head.weight.zero_()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tapped.modules())
    assert torch.equal(twin(x)[1], before[1])
    assert torch.equal(tapped(x)[0], before[0])


def test_a_pruned_net_has_a_narrower_embedding() -> None:
    net = Cnn().eval()
    example = torch.zeros(1, 1, 8, 8)
    torch_pruning.pruner.BasePruner(
        net, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=[net.head], round_to=4,
    ).step()  # fmt: skip
    assert Tapped(net)(example)[1].shape == (1, 12)


def test_the_last_layer_is_found_without_changing_the_mode() -> None:
    net = Cnn()
    statistics = net.bn1.running_mean.clone()
    assert last_layer(net, torch.randn(4, 1, 8, 8))[1] is net.head
    assert net.training
    assert torch.equal(net.bn1.running_mean, statistics)


class Unlinked(Cnn):
    embedding = "backbone"


class Unused(Cnn):
    embedding = "spare"

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Pair(Cnn):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Unlinked, r"Unlinked\.embedding is 'backbone': expected the name of a submodule, one of conv1, bn1"),
        (Unused, r"Unused\.embedding names 'spare', which did not run"),
        (nn.ReLU, r"ReLU ran no linear or convolution layer"),
        (Pair, r"Pair answers a tuple: expected one tensor"),
    ],
)
def test_a_net_without_an_embedding_is_told_what_is_expected(make: type[nn.Module], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Tapped(make())(torch.zeros(2, 1, 8, 8))
