"""The judgement: how much worse the package is than its reference, on test rows, computed once for what was chosen.

Whoever looks at test rows twice has chosen on them. So a package that misses its limit is refused, and the message says
what would help: more test rows when the estimate is inside and the interval is not, another model when it is outside.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgewright_contracts.errors import Refused

from ..measuring.bounds import Bound, loss_bound
from ..measuring.metrics import Outputs
from .choice import Choice
from .choosing import nearest
from .workbench import Workbench


def judge(bench: Workbench, choice: Choice, truth: Outputs, found: Mapping[str, Outputs]) -> dict[str, Bound]:
    """Bounds by variant; `found` are the outputs on test rows of every chosen variant, `truth` the reference's.

    Raises Refused when one lies above the limit, whichever format it is: the package promises it for all.
    """
    rows = bench.data.test
    bounds = {
        name: loss_bound(bench.metric, truth, outputs, rows.labels, seed=bench.seed, groups=rows.groups)
        for name, outputs in found.items()
    }
    limit = choice.limits.max_drop
    if limit is None:
        return bounds
    missed = [_missed(name, bound, limit) for name, bound in bounds.items() if bound.bound > limit]
    if missed:
        raise Refused(
            f"the package loses more than --max-drop {limit:g} may be. {'; '.join(missed)}. "
            f"{nearest(choice.candidates, choice.limits)}. Finished steps are kept: another limit costs no training"
        )
    return bounds


def _missed(name: str, bound: Bound, limit: float) -> str:
    said = (
        f"{name}: loss {bound.estimate:.2f} points, at most {bound.bound:.2f} ({bound.confidence:.0%}, n = {bound.n:,})"
    )
    needed = bound.needed(limit)
    if needed is None:
        return f"{said}; the loss itself is the limit, more test rows would not help"
    return f"{said}; the number of test rows is the limit: at these rates {needed:,} would do"
