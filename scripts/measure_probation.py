"""How often a good package is blamed by the local test of a probation, and how soon a bad one is found.

    python scripts/measure_probation.py [--runs N]

Windows of a minute with 60 inferences, judged after each of 100, against a period of a day before. All three rates are
simulated, the errors alone grow by the factor; `even` counts are Poisson, `rough` ones follow the hour of the day
(+-30 %) and come in bursts (a rate that varies by 70 % from window to window). About two minutes.
"""

from __future__ import annotations

import argparse

import numpy as np

from edgewright_agent.updating import quality
from edgewright_agent.updating.quality import PrePeriod, Seen

N = 60  # inferences of a window
WINDOWS = 100
DAY = 1440
RATE = 0.01
FACTORS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
BURST = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    print(f"errors, rejections and low confidence {RATE:.0%} each; {runs} probations of {WINDOWS} windows")
    for rough in (False, True):
        for factor in FACTORS:
            rng = np.random.default_rng(int(factor * 10) + rough)
            found = [_found(rng, factor, rough) for _ in range(runs)]
            delays = sorted(at for at in found if at)
            share = len(delays) / runs
            median = f", median after {delays[len(delays) // 2]} windows" if share >= 0.5 else ""
            print(f"{'rough' if rough else 'even '}  errors × {factor:<4g}  sent back {share:7.2%}{median}")


def _found(rng: np.random.Generator, factor: float, rough: bool) -> int:
    """The window after which a package is sent back, 0 for none."""
    start = int(rng.integers(DAY))
    before = PrePeriod()
    for bad in _counts(rng, np.arange(start - DAY, start), 1.0, rough):
        before = quality.remembered(before, _seen(bad), None)
    now = Seen()
    for i, bad in enumerate(_counts(rng, np.arange(start, start + WINDOWS), factor, rough), 1):
        now = now.plus(_seen(bad))
        if quality.worse(now, before, None):
            return i
    return 0


def _counts(rng: np.random.Generator, minutes: np.ndarray, factor: float, rough: bool) -> np.ndarray:
    """int[windows, 3]: errors, rejected, low."""
    rate = np.full((len(minutes), 3), RATE) * (factor, 1.0, 1.0)
    if rough:
        rate *= (1 + 0.3 * np.sin(2 * np.pi * minutes / DAY))[:, None]
        rate *= rng.gamma(1 / BURST**2, BURST**2, rate.shape)
    return np.minimum(rng.poisson(N * rate), N)


def _seen(bad: np.ndarray) -> Seen:
    errors, rejected, low = (int(k) for k in bad)
    return Seen(N, errors, rejected, N, low)


if __name__ == "__main__":
    main()
