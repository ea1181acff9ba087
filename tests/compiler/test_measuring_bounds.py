"""The bound on the loss: its exact value by independent ways, how often it holds, and the rows that would be needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multinomial, norm
from scipy.stats import t as student

from edgewright_compiler.compilation import compile_recipe
from edgewright_compiler.measuring.bounds import loss_bound, several_groups, tango_upper, widening
from edgewright_compiler.measuring.metrics import Outputs, metric
from edgewright_compiler.pipeline.choice import Limits
from edgewright_compiler.rows import Labelled
from edgewright_contracts.errors import Refused, RequestError
from edgewright_devices import load
from edgewright_models.digits.recipe import Settings, recipe

Floats = npt.NDArray[np.float64]
TABLES = [(0, 0, 50), (1, 0, 44), (7, 1, 21), (40, 20, 160), (20, 40, 160), (3, 9, 30), (120, 80, 10_000), (0, 5, 400)]


def by_likelihood(lost: int, gained: int, n: int, confidence: float) -> float:
    """The limit from first principles: the constrained likelihood maximised by scipy, the score test inverted."""

    def score(d: float) -> float:
        def cost(q: float) -> float:
            cells = ((lost, q + d), (gained, q), (n - lost - gained, 1 - 2 * q - d))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        low, high = max(0.0, -d), (1 - d) / 2
        q = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        q = min((low, q), key=cost)
        return float((lost - gained - n * d) / math.sqrt(n * (2 * q + d * (1 - d))) + norm.ppf(confidence))

    return float(brentq(score, (lost - gained) / n + 1e-9, 1 - 1e-9, xtol=1e-12))


def by_quartic(lost: int, gained: int, n: int, confidence: float) -> float:
    """The closed form of Yang, Sun and Hardin, Statistics in Medicine 32 (2013): the largest root of a quartic."""
    g = norm.ppf(confidence) ** 2
    d = lost - gained
    m = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * ((lost + gained) / g + 1),
        n * d * (2 * (lost + gained) / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - (lost + gained)) / g,
    ]
    roots = np.roots(m)
    return float(max(r.real for r in roots if abs(r.imag) < 1e-6))


@pytest.mark.parametrize(("lost", "gained", "n"), TABLES)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
def test_tangos_limit_is_what_two_independent_computations_give(
    lost: int, gained: int, n: int, confidence: float
) -> None:
    found = tango_upper(lost, gained, n, confidence)
    assert found == pytest.approx(by_likelihood(lost, gained, n, confidence), abs=2e-6)
    assert found == pytest.approx(by_quartic(lost, gained, n, confidence), abs=1e-6)


def test_tangos_limit_is_the_published_one() -> None:
    """Fagerland, Lydersen and Laake 2014, airway reactivity (1, 1, 7, 12): 95 % interval -0.517 to -0.026."""
    assert round(tango_upper(7, 1, 21, 0.975), 3) == 0.517
    assert round(-tango_upper(1, 7, 21, 0.975), 3) == 0.026


def of(right: npt.NDArray[np.bool_]) -> Outputs:
    """Outputs of a classifier that is right on these rows, all of which have label 1."""
    return {"probabilities": np.stack([~right, right], axis=1).astype(np.float32)}


def test_a_bound_counts_rows_scored_differently_and_is_in_points() -> None:
    n = 1000
    reference, package = np.ones(n, np.bool_), np.ones(n, np.bool_)
    reference[:10], package[8:30] = False, False
    found = loss_bound(metric("accuracy", "classification"), of(reference), of(package), np.ones(n, np.int64), seed=1)
    assert (found.n, found.discordant) == (n, 28)
    assert found.estimate == pytest.approx(100 * (20 - 8) / n)
    assert found.bound == pytest.approx(100 * by_likelihood(20, 8, n, 0.95), abs=1e-3)


def test_equal_models_are_not_proven_equal() -> None:
    right = np.ones(400, np.bool_)
    found = loss_bound(metric("accuracy", "classification"), of(right), of(right), np.ones(400, np.int64), seed=1)
    z = norm.ppf(0.95)
    assert found.estimate == 0
    assert found.bound == pytest.approx(100 * z * z / (400 + z * z))
    zeros = {"values": np.zeros((50, 1), np.float32)}
    still = loss_bound(metric("mae", "regression"), zeros, zeros, np.linspace(-1, 1, 50)[:, None], seed=1)
    assert still.estimate == 0 < still.bound
    set_like = loss_bound(metric("macro_f1", "classification"), of(right), of(right), np.ones(400, np.int64), seed=1)
    assert set_like.bound == pytest.approx(100 * z * z / (400 + z * z))


def test_needed_is_the_fewest_rows_at_the_rates_seen() -> None:
    n = 500
    reference, package = np.ones(n, np.bool_), np.ones(n, np.bool_)
    reference[:4], package[4:10] = False, False
    found = loss_bound(metric("accuracy", "classification"), of(reference), of(package), np.ones(n, np.int64), seed=1)
    assert found.bound > 1.0
    needed = found.needed(1.0)
    assert needed is not None
    assert found.at(needed) <= 1.0 < found.at(needed - 1)
    assert found.at(n) == found.bound
    assert found.needed(found.estimate) is None
    assert found.needed(0.1) is None, "the estimate itself is above: no number of rows helps"
    assert (found.needed(5.0) or n) < n, "fewer rows than there were would have been enough"


def test_numbers_a_row_are_bounded_by_students_t() -> None:
    rng = np.random.default_rng(3)
    labels = rng.standard_normal((60, 1))
    reference = {"values": labels + 0.1 * rng.standard_normal((60, 1))}
    package = {"values": labels + 0.2 * rng.standard_normal((60, 1))}
    found = loss_bound(metric("mae", "regression"), reference, package, labels, seed=1)
    loss = (np.abs(package["values"] - labels) - np.abs(reference["values"] - labels))[:, 0] * 100 / labels.std()
    assert found.estimate == pytest.approx(loss.mean())
    assert found.estimate > 0, "a larger error is a loss"
    assert found.bound == pytest.approx(loss.mean() + student.ppf(0.95, 59) * loss.std(ddof=1) / math.sqrt(60))
    needed = found.needed(found.estimate + 1)
    assert needed is not None
    assert found.at(needed) <= found.estimate + 1 < found.at(needed - 1)


def test_the_paired_bootstrap_agrees_with_the_exact_bound_where_both_exist() -> None:
    n = 3000
    rng = np.random.default_rng(5)
    reference, package = rng.random(n) > 0.03, rng.random(n) > 0.04
    labels = np.ones(n, np.int64)

    one = metric("accuracy", "classification")
    exact = loss_bound(one, of(reference), of(package), labels, seed=1)

    def score(outputs: Outputs, labels: npt.NDArray[np.generic]) -> object:
        right = one.score(outputs, labels)
        return lambda counts: float(counts @ right / counts.sum())

    found = loss_bound(replace(one, score=score), of(reference), of(package), labels, seed=1)  # type: ignore[arg-type]
    assert found.estimate == pytest.approx(exact.estimate)
    assert found.bound == pytest.approx(exact.bound, abs=0.08)
    again = loss_bound(replace(one, score=score), of(reference), of(package), labels, seed=1)  # type: ignore[arg-type]
    assert again.bound == found.bound, "equal seeds give equal bounds"


def share_held(lost: float, gained: float, n: int, confidence: float = 0.95) -> float:
    """How often the bound is not under the true loss, exactly: all tables with a chance, weighed by it."""
    held = total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = float(multinomial.pmf([b, c, n - b - c], n, [lost, gained, 1 - lost - gained]))
            if chance < 1e-7:
                continue
            total += chance
            held += chance * (tango_upper(b, c, n, confidence) >= lost - gained)
    return held / total


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.1, 0.05, 60), (0.05, 0.05, 80), (0.02, 0.0, 80), (0.2, 0.1, 40)])
def test_the_bound_holds_about_as_often_as_it_says(lost: float, gained: float, n: int) -> None:
    """Exact coverage, not a simulation. A score interval is approximate: it may fall a little short at few rows."""
    assert 0.93 <= share_held(lost, gained, n) <= 1.0


def test_the_bootstrap_of_a_set_metric_holds_about_as_often_as_it_says() -> None:
    """Macro F1 of three classes at 150 rows against the same models' figure on 200,000; 40 test sets."""
    rng = np.random.default_rng(11)
    one = metric("macro_f1", "classification")

    def models(n: int) -> tuple[Outputs, Outputs, npt.NDArray[np.int64]]:
        labels = rng.integers(0, 3, n)
        noise = rng.standard_normal((n, 3))
        z = 2.2 * np.eye(3)[labels] + noise
        return {"probabilities": z}, {"probabilities": z + 0.5 * rng.standard_normal((n, 3))}, labels

    reference, package, labels = models(200_000)
    ones = np.ones(len(labels))
    truth = 100 * (one.score(reference, labels)(ones) - one.score(package, labels)(ones))  # type: ignore[operator]
    held = 0
    for seed in range(40):
        found = loss_bound(one, *models(150), seed=seed, resamples=500)
        held += found.bound >= truth
    assert held >= 34, "of 40, 0.95 of which are 38; fewer than 34 would happen once in a hundred"


def test_rows_that_belong_together_do_not_count_as_many() -> None:
    """30 people of 20 rows; what the package does to a person it does to most of that person's rows."""
    rng = np.random.default_rng(8)
    one, labels, people = metric("accuracy", "classification"), np.ones(600, np.int64), np.repeat(np.arange(30), 20)
    held = {"rows": 0, "groups": 0}
    for seed in range(200):
        hurt = (rng.random(30) < 0.1)[people] & (rng.random(600) < 0.9)
        reference, package = of(np.ones(600, np.bool_)), of(~hurt)
        alone = loss_bound(one, reference, package, labels, seed=seed)
        together = loss_bound(one, reference, package, labels, seed=seed, groups=people)
        assert together.bound >= alone.bound
        assert together.estimate == alone.estimate
        held["rows"] += alone.bound >= 100 * 0.1 * 0.9
        held["groups"] += together.bound >= 100 * 0.1 * 0.9
    assert held["rows"] < 0.8 * 200, "what this guards against"
    assert held["groups"] > 0.9 * 200, "3 hurt of 30 are few, and still it holds nearly as often as it says"
    assert "one-sided, 30 groups" in together.method
    needed = together.needed(together.estimate + 1)
    assert needed is not None
    assert together.at(needed) <= together.estimate + 1 < together.at(needed - 1)


def test_one_group_and_groups_of_one_row_change_nothing() -> None:
    right = np.arange(100) > 4
    one, labels = metric("accuracy", "classification"), np.ones(100, np.int64)
    plain = loss_bound(one, of(np.ones(100, np.bool_)), of(right), labels, seed=1)
    for groups in (np.zeros(100), np.arange(100)):
        assert loss_bound(one, of(np.ones(100, np.bool_)), of(right), labels, seed=1, groups=groups) == plain


def test_draws_of_one_image_foretell_the_bound_on_rows_that_stand_for_themselves() -> None:
    """Ten equal draws of each image are worth one row, on a test set of single images too."""
    one, right = metric("accuracy", "classification"), np.arange(200) > 5
    single = Labelled("test", {"x": np.zeros((400, 1))}, np.ones(400, np.int64))
    drawn = np.repeat(np.arange(200), 10)
    rows = Labelled("validation", {"x": np.zeros((2000, 1))}, np.ones(2000, np.int64), groups=drawn)
    plain = loss_bound(one, of(np.ones(200, np.bool_)), of(right), np.ones(200, np.int64), seed=1)
    many = loss_bound(one, of(np.ones(2000, np.bool_)), of(right[drawn]), rows.labels, seed=1, groups=drawn)
    foretold = many.expected(rows, single)
    assert foretold.n == 400
    assert foretold.bound == pytest.approx(plain.at(400), rel=0.02)
    assert foretold.needed(4.0) == pytest.approx(plain.needed(4.0), rel=0.05)
    assert many.expected(rows, rows).bound == pytest.approx(many.bound)
    assert plain.expected(single, single).bound == plain.at(400)


def test_a_limit_is_not_promised_on_rows_of_one_group() -> None:
    rows = Labelled("test", {"x": np.zeros((1000, 2))}, np.ones(1000, np.int64), origins=("t.csv:2",) * 1000)
    several_groups(rows)
    several_groups(replace(rows, groups=np.array(["anna"] * 999 + ["ben"])))
    with pytest.raises(Refused, match=r"all 1,000 rows of test are of one group \('anna', the first is t.csv:2\)"):
        several_groups(replace(rows, groups=np.full(1000, "anna")))


def test_a_compile_with_a_limit_refuses_rows_of_one_group_before_it_trains(tmp_path: Path) -> None:
    digits = recipe(Settings())
    data = digits.data()
    one = replace(data, test=replace(data.test, groups=np.full(len(data.test), -1)))
    stages = list[str]()
    with pytest.raises(Refused, match="--max-drop cannot be promised: all 597 rows of clean are of one group"):
        compile_recipe(
            replace(digits, data=lambda: one),
            load("raspberry-pi-5"),
            tmp_path / "out",
            seed=1,
            now=datetime(2026, 1, 1, tzinfo=UTC),
            progress=lambda stage, _share: stages.append(stage),
            work=tmp_path / "work",
            limits=Limits(max_drop=1.0),
        )
    assert set(stages) == {"reading the data"}


def test_the_bootstrap_draws_groups() -> None:
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 2, 400)
    reference = {"probabilities": np.eye(2)[labels]}
    people = np.repeat(np.arange(20), 20)
    wrong = (people < 3) & (rng.random(400) < 0.9)
    package = {"probabilities": np.eye(2)[np.where(wrong, 1 - labels, labels)]}
    one = metric("macro_f1", "classification")
    alone = loss_bound(one, reference, package, labels, seed=1)
    together = loss_bound(one, reference, package, labels, seed=1, groups=people)
    assert together.bound - together.estimate > 2 * (alone.bound - alone.estimate)
    assert together.method.endswith("resamples of 20 groups")


def shares_held(groups: int, harm: Callable[[np.random.Generator], float], sets: int = 80) -> tuple[float, float]:
    """How often the bound on macro F1 lies above the true loss: as it is, and as the bootstrap alone has it.

    Groups of 20 rows; `harm` is what the package adds to a group's share of errors. Truth is that of 4,000 groups.
    """
    rng = np.random.default_rng([groups, 7])
    one = metric("macro_f1", "classification")

    def models(count: int) -> tuple[Outputs, Outputs, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        people = np.repeat(np.arange(count), 20)
        labels, other, u = rng.integers(0, 3, len(people)), rng.integers(1, 3, len(people)), rng.random(len(people))
        base = rng.beta(2, 18, count)
        worse = base + np.array([harm(rng) for _ in range(count)])
        answers = (np.where(u < share[people], (labels + other) % 3, labels) for share in (base, worse))
        reference, package = ({"probabilities": np.eye(3)[answer]} for answer in answers)
        return reference, package, labels, people

    reference, package, labels, _ = models(4000)
    ones = np.ones(len(labels))
    truth = 100 * (one.score(reference, labels)(ones) - one.score(package, labels)(ones))  # type: ignore[operator]
    held = bare = 0
    for seed in range(sets):
        reference, package, labels, people = models(groups)
        found = loss_bound(one, reference, package, labels, seed=seed, groups=people, resamples=100)
        held += found.bound >= truth
        bare += found.estimate + (found.bound - found.estimate) / widening(groups, 0.95) >= truth
    return held / sets, bare / sets


@pytest.mark.parametrize(("groups", "alone"), [(3, 0.82), (5, 0.87)])
def test_a_bound_of_few_groups_holds_where_the_bootstrap_alone_is_too_narrow(groups: int, alone: float) -> None:
    """It says 0.95; of 80 sets a share varies by 0.03."""
    held, bare = shares_held(groups, lambda rng: rng.beta(5, 25))
    assert held >= 0.85
    assert bare < alone


@pytest.mark.slow
def test_harm_that_few_groups_meet_is_seen_in_many_groups_and_not_in_a_handful() -> None:
    """What the warning of few groups is for: no width shows what is in none of them."""

    def rare(rng: np.random.Generator) -> float:
        return 0.3 if rng.random() < 0.15 else 0.02

    assert shares_held(4, rare)[0] < 0.85
    assert shares_held(30, rare)[0] > 0.87


def test_widening_is_students_and_goes_to_nothing() -> None:
    assert widening(2, 0.95) == pytest.approx(math.sqrt(2) * 6.3138 / 1.6449, rel=1e-4)
    assert widening(5, 0.95) == pytest.approx(math.sqrt(5 / 4) * 2.1318 / 1.6449, rel=1e-4)
    assert widening(0.1, 0.95) == widening(2, 0.95)
    assert widening(1e6, 0.95) == pytest.approx(1, abs=1e-5)


def test_more_groups_bring_a_bound_down_by_more_than_their_root() -> None:
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 2, 100)
    wrong = rng.random(100) < 0.2
    package = {"probabilities": np.eye(2)[np.where(wrong, 1 - labels, labels)]}
    found = loss_bound(metric("macro_f1", "classification"), {"probabilities": np.eye(2)[labels]}, package, labels,
                       seed=1, groups=np.repeat(np.arange(5), 20))  # fmt: skip
    width = found.at(400) - found.estimate
    assert width == pytest.approx((found.bound - found.estimate) / 2 * widening(20, 0.95) / widening(5, 0.95))


def test_too_few_rows_and_undefined_metrics_are_refused() -> None:
    right = np.ones(1, np.bool_)
    with pytest.raises(RequestError, match="at least 2 test rows, got 1"):
        loss_bound(metric("accuracy", "classification"), of(right), of(right), np.ones(1, np.int64), seed=1)
    scores = {"score": np.linspace(0, 1, 20)}
    with pytest.raises(RequestError, match="expected a finite figure on these 20 rows, got nan"):
        loss_bound(metric("auroc", "anomaly"), scores, scores, np.zeros(20, np.int64), seed=1)
