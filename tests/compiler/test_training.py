"""Training is reproducible, distillation pulls towards the teacher, pruning really removes channels in eights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from edgewright_compiler.distill import distillation_loss
from edgewright_compiler.prune import prune
from edgewright_compiler.train import cross_entropy, predict, reproducible, train
from edgewright_models.digits.recipe import Net, Settings, mislabelled

X = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype(np.float32)
Y = (X[:, 0, 0, 0] > 0).astype(np.int64)


def trained(seed: int) -> Net:
    with reproducible(seed):
        net = Net(8, 8, 8, 16)
        train(net, lambda epoch: (X, Y), cross_entropy, epochs=2, progress=lambda share: None)
    return net


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    a, b, c = trained(1), trained(1), trained(2)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_the_block_gives_back_threads_and_random_state() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    trained(5)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[float] = []
    train(Net(8, 8, 8, 16), lambda epoch: (X, Y), cross_entropy, epochs=3, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_a_student_that_answers_like_its_teacher_has_no_distance_left() -> None:
    teacher, stranger = trained(3), trained(4)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    with torch.no_grad():
        same, other = teacher(x)[0], stranger(x)[0]
    loss = partial(distillation_loss(teacher, weight=1.0), x)
    assert loss(same, y).item() < 1e-6 < loss(other, y).item()


def test_pruning_removes_channels_in_eights_and_keeps_the_head() -> None:
    net = Net(*Settings().student)
    done = prune(net, torch.zeros(1, 1, 8, 8), ratio=0.5, keep=(net.head,))
    assert done.channels_before == (16, 32, 32, 32, 10)
    assert done.channels_after == (8, 16, 16, 16, 10)
    assert all(c % 8 == 0 for c in done.channels_after[:-1])
    assert done.macs_after < done.macs_before / 2
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape[0] for m in convolutions] == [8, 16, 16], "the weights shrink, they are not masked"
    logits, embedding = predict(net, X)
    assert (logits.shape, embedding.shape) == ((96, 10), (96, 16))


def test_a_label_fault_moves_whole_classes() -> None:
    assert mislabelled(np.array([3, 7, 8, 1]), {3: 8, 7: 1}).tolist() == [8, 1, 8, 1]
