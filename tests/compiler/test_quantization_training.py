"""Training for int8: the net learns under the rounding that it will run with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgewright_compiler.quantization.qat import rounded
from edgewright_contracts.errors import Refused
from sim.nets import case

CASE = case("cnn")
ROWS, LABELS = torch.from_numpy(CASE.rows), torch.from_numpy(CASE.labels)


def net() -> nn.Module:
    torch.manual_seed(0)
    return CASE.build().eval()


def test_weights_are_rounded_per_output_channel_inside_and_untouched_behind():
    one = net()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    with rounded(one, ROWS, weight_bits=4):
        for channel in one.conv1.weight:
            assert len(channel.unique()) <= 15
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert list(one.state_dict()) == list(before)


def test_fewer_bits_change_more_and_eight_change_little():
    one = net()
    with torch.no_grad():
        exact = one(ROWS)
        errors = []
        for bits in (8, 7, 4):
            with rounded(one, ROWS, weight_bits=bits):
                errors.append(float((one(ROWS) - exact).abs().mean() / exact.std()))
        assert torch.equal(one(ROWS), exact)
    assert errors[0] < 0.02
    assert errors[0] < errors[1] < errors[2]


def test_what_a_layer_reads_is_rounded_to_levels_with_an_exact_zero():
    one = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        one[1].weight.copy_(torch.eye(2))
    example = torch.tensor([[-1.0, 0.0], [3.0, 0.5]])
    with torch.no_grad(), rounded(one, example):
        assert one(torch.zeros(1, 2)).abs().max() == 0
        assert one(torch.tensor([[9.0, -9.0]])).flatten().tolist() == pytest.approx([3.0, -1.0], abs=0.02)


def test_the_net_learns_through_the_rounding():
    one = net().train()
    with rounded(one, ROWS, weight_bits=4):
        optimiser = torch.optim.Adam(one.parameters(), lr=1e-2)
        losses = []
        for _ in range(40):
            optimiser.zero_grad()
            loss = functional.cross_entropy(one(ROWS), LABELS)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert isinstance(one.conv1, nn.Conv2d)
    assert "weight" in dict(one.conv1.named_parameters())


def test_the_float_net_returns_when_training_fails():
    one = net()

    def fail() -> None:
        with rounded(one, ROWS):
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert "conv1.weight" in one.state_dict()


def test_a_net_without_layers_is_refused():
    with pytest.raises(Refused, match="no convolution or linear layer"), rounded(nn.ReLU(), ROWS):
        pass
