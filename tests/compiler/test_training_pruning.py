"""Pruning: whole channels go, to a target, and only where the net still means the same without them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.recipe import Prune, Schedule
from edgewright_compiler.rows import Labelled
from edgewright_compiler.training.channels import Cut, apply, survey
from edgewright_compiler.training.draws import draws
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.prune import Pruned, cost_of, ladder, load_net, load_rounds, prune, save_net
from edgewright_compiler.training.sensitivity import sensitivity
from edgewright_compiler.training.train import answers, reproducible, train
from edgewright_contracts.errors import Refused, RequestError
from sim.nets import Case, Cnn, ConvGru, case, zoo

ZOO = pytest.mark.parametrize("one", zoo(), ids=lambda one: one.name)
IMAGE = torch.zeros(1, 3, 8, 8)


def built(one: Case, **kinds: Any) -> nn.Module:
    with reproducible(0):
        return one.build(**kinds).eval()


def cut_down(net: nn.Module, example: Tensor, share: float, target: str = "macs", **more: Any) -> Pruned:
    cost = cost_of(target, example)
    more.setdefault("whole", cost(net))
    return prune(net, example, cost=cost, share=share, **more)


@ZOO
def test_every_kind_of_net_gets_smaller_and_answers_in_the_same_shape(one: Case) -> None:
    net, x = built(one), torch.from_numpy(one.rows)
    shape, macs = net(x).shape, counted(net, one.example).macs
    pruned = cut_down(net, one.example, 0.8)
    assert counted(net, one.example).macs == pruned.after <= 0.8 * macs
    assert net(x).shape == shape
    assert any(after < before for before, after in pruned.channels.values())
    assert all(after == before or (after % 8 == 0 and after >= 8) for before, after in pruned.channels.values())
    assert not set(pruned.left) & {name for name, (before, after) in pruned.channels.items() if after < before}


@ZOO
def test_a_saved_net_comes_back_from_its_untrained_builder_bit_for_bit(one: Case, tmp_path: Path) -> None:
    net, x, kept = built(one), torch.from_numpy(one.rows), tmp_path / "net"
    whole = float(counted(net, one.example).macs)
    first = cut_down(net, one.example, 0.9)
    second = cut_down(net, one.example, 0.73, rounds=first.rounds, whole=whole)
    save_net(kept, net, second.rounds)
    state = torch.get_rng_state()
    again = load_net(kept, one.build)
    assert torch.equal(torch.get_rng_state(), state), "building leaves the caller's randomness alone"
    assert torch.equal(again(x), net(x))
    assert load_rounds(kept) == second.rounds
    content = kept.read_bytes()
    save_net(kept, again, load_rounds(kept))
    assert kept.read_bytes() == content
    np.load(kept, allow_pickle=False).close()


def test_a_net_that_was_never_pruned_is_kept_the_same_way(tmp_path: Path) -> None:
    net = built(case("gru"))
    save_net(tmp_path / "net", net)
    x = torch.from_numpy(case("gru").rows)
    assert torch.equal(load_net(tmp_path / "net", ConvGru)(x), net(x))


def test_channels_go_in_eights_and_the_weights_shrink() -> None:
    net = built(case("cnn"))
    pruned = cut_down(net, case("cnn").example, 0.4)
    assert pruned.channels == {"conv1": (16, 8), "conv2": (32, 24), "embed": (24, 16)}
    assert [tuple(net.get_parameter(f"{n}.weight").shape[:2]) for n in ("conv1", "conv2")] == [(8, 1), (24, 8)]


@pytest.mark.parametrize("target", ["macs", "size"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_the_target_is_met_with_nothing_to_spare_but_one_step(target: str, share: float) -> None:
    one = case("depthwise")
    whole = cost_of(target, one.example)(net := built(one, width=64))
    pruned = cut_down(net, one.example, share, target)
    assert pruned.after <= share * whole
    assert pruned.after > 0.6 * share * whole
    assert cost_of(target, one.example)(net) == pruned.after


def test_time_is_a_target_like_any_when_it_is_measured() -> None:
    """The clock of this test: a device on which only the second convolution costs anything."""
    net = built(case("cnn"))

    def seconds(candidate: nn.Module) -> float:
        return 1e-6 * candidate.get_parameter("conv2.weight").numel()

    pruned = prune(net, case("cnn").example, cost=seconds, whole=seconds(net), share=0.4)
    assert pruned.after <= 0.4 * pruned.before
    with pytest.raises(RequestError, match=r"expected a target among macs, size \(or a cost that measures latency\)"):
        cost_of("latency", case("cnn").example)


def test_a_target_that_is_met_already_changes_nothing() -> None:
    net = built(case("cnn"))
    before = copy.deepcopy(net.state_dict())
    pruned = cut_down(net, case("cnn").example, 0.5, whole=1e9)
    assert pruned.rounds == ()
    assert pruned.before == pruned.after
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_target_out_of_reach_is_refused_with_the_least_and_what_stands_in_the_way() -> None:
    net = built(case("gru"))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        Refused, match=r"10% .* 72% is the least .* multiples of 8; .*conv2: its channels meet gru \(GRU\)"
    ):
        cut_down(net, case("gru").example, 0.1)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), "the net is as it was"


def test_the_least_important_channels_go() -> None:
    one, weak = case("autoencoder"), [3, 7, 8, 15, 16, 23, 24, 31]
    net = built(one)
    with torch.no_grad():
        net.get_parameter("down.0.weight")[weak] *= 1e-3
        net.get_parameter("down.2.weight")[:, weak] *= 1e-3
    pruned = cut_down(net, one.example, 0.95)
    assert pruned.rounds[0].cuts == (Cut("down.0", tuple(weak)),), "of two layers, the one with less to lose"


def test_what_a_user_froze_stays_frozen_and_the_mode_is_left() -> None:
    net = built(case("cnn")).train()
    net.get_parameter("conv1.weight").requires_grad_(False)
    cut_down(net, case("cnn").example, 0.5)
    assert not net.get_parameter("conv1.weight").requires_grad
    assert net.get_parameter("conv2.weight").requires_grad
    assert all(m.training for m in net.modules())


# What the dependency graph gets wrong is found out by trial, and left alone.


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(40), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.head(self.bn(torch.cat([a, torch.relu(self.b(a))], 1)).mean((2, 3)))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 32, 3), nn.Linear(32, 16), nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.hardswish(self.a(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(a.mean((2, 3))))))
        return self.head((a * gate[:, :, None, None]).mean((2, 3)))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.Conv2d(32, 16, 3, groups=2)
        self.c, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.c(self.b(torch.relu(self.norm(self.a(x)))))).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, 1)
        return self.head(torch.relu(self.b(value * torch.sigmoid(gate))).mean((2, 3)))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.softmax(self.a(x), 1))).mean((2, 3)))


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(functional.pixel_shuffle(torch.relu(self.a(x)), 2))).mean((2, 3)))


class Encoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.lstm = nn.LSTM(32, 16, bidirectional=True, batch_first=True)
        self.wide, self.head = nn.Linear(32, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.a(x).flatten(2).transpose(1, 2))
        return self.head(torch.relu(self.wide(self.lstm(h)[0].mean(1))))


@pytest.mark.parametrize(
    ("build", "free", "left"),
    [
        (Concatenated, {"a", "b"}, {}),
        (Squeezed, {"a", "up", "down"}, {}),
        (Shuffled, {"b"}, {"a": "mixed in a way that the dependency graph does not see"}),
        (Mixed, {"b"}, {"a": "mixed"}),
        (Gated, {"b"}, {"a": "cannot go without others"}),
        (Upsampled, {"b"}, {"a": "cannot be ranked"}),
        (Normed, {"c"}, {"a": "GroupNorm", "b": "a convolution in 2 groups"}),
        (
            Encoded,
            {"wide", "encoder.linear1"},
            {
                "a": "meet",
                "encoder.self_attn": "MultiheadAttention keeps",
                "encoder.linear2": "meet",
                "lstm": "LSTM keeps its channels",
            },
        ),
    ],
)
def test_only_channels_go_that_the_net_can_do_without(
    build: type[nn.Module], free: set[str], left: dict[str, str]
) -> None:
    with reproducible(0):
        net = build().eval()
    groups, why = survey(net, IMAGE)
    assert {name for group in groups for name in group.layers} == free
    assert why["head"] == "the answer is made of its channels"
    for name, reason in left.items():
        assert reason in why[name]
    pruned = cut_down(net, IMAGE, 0.95, "size", round_to=4)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert pruned.after < pruned.before


def test_a_net_that_cannot_be_traced_is_refused_in_one_sentence() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 32)

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.a(x).detach().numpy())

    with pytest.raises(Refused, match="a: the answer's gradient does not reach it"):
        cut_down(Detached(), torch.zeros(1, 4), 0.5)
    with pytest.raises(Refused, match=r"Cnn cannot be traced by torch-pruning \(.*\); compile it without pruning"):
        survey(Cnn(), IMAGE)


# Rounds.


def test_rounds_come_down_in_equal_proportion_from_share_to_share() -> None:
    plan = Prune(shares=(0.64, 0.16), rounds=2, tune=Schedule(epochs=1))
    steps = ladder(plan)
    assert steps[0.64] == pytest.approx((0.8, 0.64))
    assert steps[0.16] == pytest.approx((0.32, 0.16))
    assert ladder(Prune(tune=Schedule(epochs=1))) == {0.5: (0.5,)}


@pytest.mark.parametrize("shares", [(1.0,), (0.0,), (0.3, 0.5), (0.5, 0.5), (float("nan"),)])
def test_shares_that_do_not_fall_are_named(shares: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="expected shares that fall from below 1 to above 0"):
        ladder(Prune(shares=shares, tune=Schedule(epochs=1)))


def test_a_pruned_net_learns_again_what_it_lost() -> None:
    one = case("cnn")
    loss, rows = (
        task_loss(one.task, schedule=Schedule(epochs=1), labels=one.labels),
        draws(Labelled("train", {"x": one.rows}, one.labels), None, 1),
    )
    schedule = Schedule(epochs=8, batch=16, rate=0.01)
    net, rounds = built(one), ()
    whole = cost_of("macs", one.example)(net)

    def accuracy() -> float:
        return float((answers(net, nn.Identity(), one.rows)[0].argmax(1) == one.labels).mean())

    train(net, nn.Identity(), rows, loss, schedule, seed=1, progress=lambda share: None)
    assert accuracy() > 0.95
    for share in ladder(Prune(shares=(0.3,), rounds=2, tune=schedule))[0.3]:
        pruned = cut_down(net, one.example, share, whole=whole, rounds=rounds)
        rounds = pruned.rounds
        train(net, nn.Identity(), rows, loss, schedule, seed=2, progress=lambda share: None)
    assert len(rounds) == 2
    assert counted(net, one.example).macs <= 0.3 * whole
    assert accuracy() > 0.95


# Sensitivity.


def test_the_table_finds_the_layer_that_the_answer_hangs_on() -> None:
    one = case("cnn")
    net = built(one)
    with torch.no_grad():
        for name in ("conv2.weight", "conv2.bias"):
            net.get_parameter(name).mul_(1e-6)  # what comes through here does not matter
    x = torch.from_numpy(one.rows)
    with torch.no_grad():
        whole = net(x)

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            return -float((candidate(x) - whole).abs().mean())

    told: list[float] = []
    table = sensitivity(net, one.example, score, share=0.5, progress=told.append)
    assert [row.layers for row in table if row.drop > 1e-4] == [("embed",)]
    assert {row.layers[0]: row.kept for row in table} == {"conv1": 8, "conv2": 16, "embed": 8}
    assert [row.drop for row in table] == sorted((row.drop for row in table), reverse=True)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert torch.equal(net(x), whole), "the net stays as it is"


def test_a_share_that_is_none_is_named() -> None:
    with pytest.raises(RequestError, match=r"between 0 and 1, got 1\.5"):
        sensitivity(Cnn(), case("cnn").example, lambda net: 0.0, share=1.5)


# Files.


def test_a_file_that_is_no_net_or_another_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net"
    with pytest.raises(RequestError, match="expected a saved net, got nothing there"):
        load_net(path, Cnn)
    for content in (b"", b"no zip at all", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="expected a net as save_net writes it"):
            load_net(path, Cnn)
    save_net(path, Cnn(8))
    with pytest.raises(RequestError, match=r"got another net's: .*size mismatch for conv1.weight"):
        load_net(path, Cnn)
    net = built(case("cnn"))
    save_net(path, net, cut_down(net, case("cnn").example, 0.5).rounds)
    with pytest.raises(RequestError, match="another net's"):
        load_net(path, ConvGru)


def test_cuts_of_a_layer_that_is_not_there_are_named() -> None:
    with pytest.raises(RequestError, match="expected a layer body in Cnn, got a net without"):
        apply(Cnn(), case("cnn").example, (Cut("body", (1,)),))
