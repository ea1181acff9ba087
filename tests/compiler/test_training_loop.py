"""The training loop: reproducible, resumable bit for bit, stopped early, and clear about what it does not take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.recipe import Distil, Schedule
from edgewright_compiler.rows import Labelled
from edgewright_compiler.training.distill import distillation, module_teacher
from edgewright_compiler.training.draws import Draw, draws
from edgewright_compiler.training.finetune import last_layer_only
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import Batch, History, answers, reproducible, train
from edgewright_contracts.errors import EdgewrightError, Refused, RequestError, Unavailable
from sim.nets import Case, Cnn, case, zoo

ZOO = pytest.mark.parametrize("one", zoo(), ids=lambda one: one.name)
QUICK = Schedule(epochs=2, batch=32)


def rows_of(one: Case) -> Labelled:
    return Labelled("train", {"x": one.rows}, one.labels)


def built(one: Case, seed: int) -> nn.Module:
    with reproducible(seed):
        return one.build()


def noisy(rng: np.random.Generator, rows: Any) -> Any:
    return (rows + rng.normal(0, 0.1, rows.shape)).astype(rows.dtype)


def trained(one: Case, schedule: Schedule = QUICK, *, seed: int = 1, **more: Any) -> tuple[nn.Module, History]:
    net = built(one, seed)
    augment = noisy if one.rows.dtype == np.float32 else None
    more.setdefault("progress", lambda share: None)
    loss = more.pop("loss", None) or task_loss(one.task, schedule=schedule, labels=one.labels, net=net)
    history = train(net, nn.Identity(), draws(rows_of(one), augment, seed), loss, schedule, seed=seed, **more)
    return net, history


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@ZOO
def test_every_kind_of_net_learns_its_task(one: Case) -> None:
    net, history = trained(one, Schedule(epochs=6, batch=32, rate=0.01))
    assert history.losses[-1] < history.losses[0]
    answer, embedding = answers(net, nn.Identity(), one.rows)
    assert len(answer) == len(embedding) == len(one.rows)
    assert embedding.ndim == 2
    assert not net.training


@ZOO
def test_equal_seeds_give_equal_weights_and_other_seeds_others(one: Case) -> None:
    assert same(trained(one, seed=1)[0], trained(one, seed=1)[0])
    assert not same(trained(one, seed=1)[0], trained(one, seed=2)[0])


def test_the_block_gives_back_threads_and_random_state() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    trained(case("mlp"), seed=5)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[float] = []
    trained(case("mlp"), progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


class Killed(Exception):
    pass


def killed_after(share: float) -> Callable[[float], None]:
    def progress(done: float) -> None:
        if done >= share:
            raise Killed

    return progress


@pytest.mark.parametrize(("name", "shape"), [("cnn", "one-cycle"), ("transformer", "cosine"), ("gru", "constant")])
def test_a_run_that_was_killed_and_resumed_gives_the_weights_of_one_that_was_not(
    name: str, shape: Any, tmp_path: Path
) -> None:
    one = case(name)
    schedule = Schedule(epochs=4, batch=32, shape=shape, clip=1.0, optimiser="adamw", frozen_epochs=1)
    teacher, _ = trained(one, seed=9)

    def run(**more: Any) -> nn.Module:
        base = task_loss(one.task, schedule=schedule, labels=one.labels)
        loss = distillation(one.task, module_teacher(teacher), base, Distil(features=1.0))
        return trained(one, schedule, loss=loss, clock=itertools.count(0, 31).__next__, **more)[0]

    whole, kept = run(), tmp_path / "run.checkpoint"
    for share in (0.3, 0.6, 0.8):
        with pytest.raises(Killed):
            run(progress=killed_after(share), checkpoint=kept)
        assert kept.is_file()
    told: list[float] = []
    assert same(whole, run(progress=told.append, checkpoint=kept))
    assert told[0] == 0.75, "it went on where the last checkpoint was"
    assert not list(tmp_path.iterdir()), "a finished run leaves nothing behind"


def test_the_best_weights_survive_a_kill_too(tmp_path: Path) -> None:
    one, schedule = case("mlp"), Schedule(epochs=6, batch=32, patience=5)
    kept, clock = tmp_path / "run", itertools.count(0, 31).__next__

    def run(**more: Any) -> tuple[nn.Module, History]:
        figures = iter((1.0, 3.0, 2.0, 0.0, 0.0, 0.0)[more.pop("skip", 0) :])
        return trained(one, schedule, validate=lambda net: next(figures), clock=clock, **more)

    whole = run()
    with pytest.raises(Killed):
        run(progress=killed_after(0.5), checkpoint=kept)
    resumed = run(skip=3, checkpoint=kept)
    assert resumed[1] == whole[1]
    assert whole[1].best == 1
    assert same(whole[0], resumed[0])


@pytest.mark.parametrize("content", [b"", b"cut short", None])
def test_a_checkpoint_that_is_broken_or_of_another_run_is_not_used(content: bytes | None, tmp_path: Path) -> None:
    one, kept, clock = case("mlp"), tmp_path / "run", itertools.count(0, 31).__next__
    if content is None:
        with pytest.raises(Killed):
            trained(one, seed=2, progress=killed_after(0.5), checkpoint=kept, clock=clock)
    else:
        kept.write_bytes(content)
    assert same(trained(one)[0], trained(one, checkpoint=kept, clock=clock)[0])


def test_checkpoints_are_written_at_most_every_half_minute(tmp_path: Path) -> None:
    kept, seen = tmp_path / "run", []
    clock = itertools.count(0, 10).__next__  # ten seconds an epoch
    trained(
        case("mlp"),
        Schedule(epochs=7, batch=96),
        checkpoint=kept,
        clock=lambda: (seen.append(kept.is_file()), float(clock()))[1],
    )
    assert seen.index(True) == 4, "after three epochs, asked at the fourth"


def test_a_disk_that_is_full_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match=r"checkpoint cannot be written.*free space"):
        trained(case("mlp"), checkpoint=tmp_path / "file" / "run", clock=itertools.count(0, 31).__next__)


def test_training_stops_when_nothing_gets_better_and_keeps_the_best_weights() -> None:
    one, figures = case("mlp"), iter((0.1, 0.5, 0.4, 0.5, 0.3))
    states: list[dict[str, Tensor]] = []

    def validate(net: nn.Module) -> float:
        assert not net.training
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(figures)

    net, history = trained(one, Schedule(epochs=20, batch=32, patience=2), validate=validate)
    assert history.figures == (0.1, 0.5, 0.4, 0.5)
    assert (history.best, len(history.losses)) == (1, 4), "as good is not better"
    assert all(torch.equal(states[1][name], value) for name, value in net.state_dict().items())


def test_without_patience_the_last_weights_are_kept_whatever_the_figures_say() -> None:
    figures = iter((3.0, 2.0))
    _, history = trained(case("mlp"), validate=lambda net: next(figures))
    assert (history.figures, history.best) == ((3.0, 2.0), 1)


def test_only_the_last_layer_learns_while_the_rest_is_frozen_statistics_too() -> None:
    one = case("cnn")
    start = built(one, 1)
    frozen, _ = trained(one, Schedule(epochs=1, batch=32, frozen_epochs=1))
    moved = {n for n, v in frozen.state_dict().items() if not torch.equal(v, start.state_dict()[n])}
    assert moved == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in frozen.parameters()), "it is thawed when done"
    thawed, _ = trained(one, Schedule(epochs=2, batch=32, frozen_epochs=1))
    assert not torch.equal(thawed.get_parameter("conv1.weight"), start.get_parameter("conv1.weight"))


def test_what_the_user_has_frozen_stays_frozen() -> None:
    one = case("cnn")
    net = built(one, 1)
    net.get_parameter("conv1.weight").requires_grad_(False)
    before = net.get_parameter("conv1.weight").clone()
    loss = task_loss(one.task, schedule=QUICK, labels=one.labels)
    train(
        net, nn.Identity(), draws(rows_of(one), None, 1), loss, replace(QUICK, frozen_epochs=1), seed=1, progress=print
    )
    assert torch.equal(net.get_parameter("conv1.weight"), before)
    assert not net.get_parameter("conv1.weight").requires_grad


def test_freezing_finds_the_last_layer_by_running_the_net() -> None:
    net = Cnn().train()
    last_layer_only(net, torch.zeros(1, 1, 8, 8))
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert [n for n, m in net.named_modules() if m.training] == ["head"]


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("shape", ["one-cycle", "cosine", "constant"])
def test_every_optimiser_and_shape_brings_the_loss_down(optimiser: Any, shape: Any) -> None:
    schedule = Schedule(epochs=4, batch=16, rate=0.01, optimiser=optimiser, shape=shape, weight_decay=1e-4)
    _, history = trained(case("cnn"), schedule)
    assert history.losses[-1] < history.losses[0]


def test_a_bound_on_the_gradient_bounds_the_step() -> None:
    def moved(clip: float | None) -> float:
        schedule = Schedule(epochs=1, batch=96, rate=0.1, optimiser="sgd", shape="constant", clip=clip)
        one = case("cnn")
        net, _ = trained(one, schedule)
        pairs = zip(net.parameters(), built(one, 1).parameters(), strict=True)
        return float(sum((p - q).square().sum() for p, q in pairs) ** 0.5)

    with torch.no_grad():
        assert moved(0.01) == pytest.approx(0.1 * 1.9 * 0.01, rel=1e-3), "Nesterov's first step is 1 + momentum long"
        assert moved(None) > 10 * moved(0.01)


def test_one_row_at_the_end_joins_the_batch_before_it() -> None:
    one = case("cnn")
    odd = replace(one, rows=one.rows[:33], labels=one.labels[:33])
    trained(odd, Schedule(epochs=1, batch=32))
    trained(odd, Schedule(epochs=1, batch=1))


def test_rows_that_may_not_be_written_are_taken_too() -> None:
    one = case("mlp")
    rows = one.rows.copy()
    rows.setflags(write=False)
    answer, _ = answers(built(one, 1), nn.Identity(), rows)
    assert len(answer) == len(rows)


class Viewed(Cnn):
    """A view of activations, which memory in channels-last order does not have."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.head(torch.relu(self.embed(x.view(len(x), -1))))


@pytest.mark.parametrize(("build", "contiguous"), [(Cnn, False), (Viewed, True)])
def test_images_are_trained_in_the_layout_that_the_net_can_stand(build: type[Cnn], contiguous: bool) -> None:
    seen: list[bool] = []
    net = build()

    def loss(batch: Batch, answer: Tensor, _embedding: Tensor) -> Tensor:
        seen.append(net.conv2.weight.is_contiguous())
        return answer.square().mean()

    trained(replace(case("cnn"), build=lambda: net), loss=loss)
    assert set(seen) == {contiguous}
    assert all(p.is_contiguous() for p in net.parameters()), "it is handed back as it came"


def test_every_epoch_draws_anew_by_seed_and_epoch_alone() -> None:
    one = case("mlp")
    first, again = draws(rows_of(one), noisy, 3), draws(rows_of(one), noisy, 3)
    second = first(1)[0]
    assert np.array_equal(again(1)[0], second), "whatever was drawn before"
    assert not np.array_equal(first(0)[0], second)
    assert np.array_equal(draws(rows_of(one), None, 3)(5)[0], one.rows)


@ZOO
def test_unlabelled_rows_join_with_labels_that_no_loss_counts(one: Case) -> None:
    raw, labels = draws(rows_of(one), None, 1, {"x": one.rows[:5]})(0)
    assert (len(raw), len(labels)) == (101, 101)
    assert labels.dtype == one.labels.dtype
    unknown = labels[-5:]
    assert (unknown == -1).all() if unknown.dtype == np.int64 else np.isnan(unknown).all()
    net = built(one, 1)
    loss = task_loss(one.task, schedule=QUICK, labels=one.labels, net=net)
    if one.task != "anomaly":  # a reconstruction needs no label
        x = torch.from_numpy(one.rows[:5])
        batch = Batch(x, x, torch.from_numpy(unknown))
        assert float(loss(batch, net(x), x).detach()) == 0.0


# What it does not take.


def refused(error: type[EdgewrightError], said: str, one: Case, schedule: Schedule = QUICK, **more: Any) -> None:
    with pytest.raises(error, match=said):
        trained(one, schedule, **more)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (Schedule(epochs=0), "epochs of at least 1, got 0"),
        (Schedule(epochs=1, batch=0), "batch of at least 1, got 0"),
        (Schedule(epochs=1, rate=0.0), "rate above 0, got 0.0"),
        (Schedule(epochs=1, rate=float("nan")), "rate above 0, got nan"),
        (Schedule(epochs=1, clip=0.0), "clip above 0"),
        (Schedule(epochs=1, smoothing=1.0), "smoothing below 1"),
        (Schedule(epochs=1, patience=3), "patience 3 needs a validation figure"),
    ],
)
def test_a_schedule_that_cannot_run_is_named(schedule: Schedule, said: str) -> None:
    refused(RequestError, said, case("mlp"), schedule)


def test_a_loss_that_is_not_a_number_is_named_with_epoch_and_batch() -> None:
    one = case("mlp")
    rows = one.rows.copy()
    rows[50] = np.nan
    refused(Refused, r"the loss is nan in epoch 0, batch \d; a smaller rate", replace(one, rows=rows))


def test_a_validation_figure_that_is_not_a_number_is_named() -> None:
    refused(Refused, "validation figure is nan after epoch 0", case("mlp"), validate=lambda net: float("nan"))


def test_rows_that_the_net_does_not_take_are_named_before_anything_is_trained() -> None:
    one = case("mlp")
    wrong = replace(one, rows=one.rows[:, :5])
    refused(RequestError, r"float32 \[2, 5\].*mat1 and mat2", wrong)


def test_a_front_that_fails_is_named_too() -> None:
    one = case("cnn")
    loss = task_loss(one.task, schedule=QUICK, labels=one.labels)
    with pytest.raises(RequestError, match="the front and the net do not take rows"):
        train(
            built(one, 1), nn.Flatten(), draws(rows_of(one), None, 1), loss, QUICK, seed=1, progress=lambda share: None
        )


@pytest.mark.parametrize(
    ("name", "build", "said"),
    [
        (
            "cnn",
            lambda: nn.Conv2d(1, 3, 3),
            r"expected logits \[n, k\] from the net, here \[2, any\], got \[2, 3, 6, 6\]",
        ),
        ("mlp", lambda: nn.Linear(6, 3), r"expected values \[n, k\] from the net, here \[2, 2\], got \[2, 3\]"),
        ("tagger", lambda: nn.Linear(6, 3), r"multilabel: .* here \[2, 2\], got \[2, 3\]"),
        ("autoencoder", lambda: nn.Linear(6, 5), r"reconstruction .* here \[2, 6\], got \[2, 5\]"),
        ("cnn", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), r"at least 3 classes .* up to 2\), got 2"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_named_with_what_was_expected(
    name: str, build: Callable[[], nn.Module], said: str
) -> None:
    refused(RequestError, said, replace(case(name), build=build))


def test_a_loss_of_the_nets_own_that_fails_is_named_with_what_it_was_given() -> None:
    class Wrong(Cnn):
        def loss(self, answer: Tensor, labels: Tensor) -> Tensor:
            return (answer - labels).square().mean()

    refused(RequestError, r"the loss does not take an answer \[2, 3\] .* \[2\]: ", replace(case("cnn"), build=Wrong))


def test_a_draw_that_changes_its_size_is_named() -> None:
    one = case("mlp")

    def draw(epoch: int) -> Any:
        return one.rows[epoch:], one.labels[epoch:]

    loss = task_loss(one.task, schedule=QUICK, labels=one.labels)
    with pytest.raises(RequestError, match="draw 1: expected 96 rows as in draw 0, got 95"):
        train(built(one, 1), nn.Identity(), draw, loss, QUICK, seed=1, progress=lambda share: None)


def test_an_augmentation_that_changes_rows_is_named() -> None:
    one = case("mlp")
    draw: Draw = draws(rows_of(one), lambda rng, rows: rows.astype(np.float64), 1)
    with pytest.raises(RequestError, match=r"augmented rows: expected float32 \[6\].*got float64 \[6\]"):
        draw(0)


def test_too_few_rows_and_nothing_to_learn_are_named() -> None:
    one = case("mlp")
    single, loss = (
        replace(one, rows=one.rows[:1], labels=one.labels[:1]),
        task_loss(one.task, schedule=QUICK, labels=one.labels),
    )
    refused(RequestError, "expected at least 2 rows, got 1", single, loss=loss)
    frozen = replace(one, build=lambda: one.build().requires_grad_(False))
    refused(RequestError, "parameters that require a gradient, got none", frozen)
