"""An alert of kind `accuracy` when labels say that what a model has learnt does not hold, for a version in a fleet and
context; closed when they no longer do, or when nothing runs it any more. What is expected there is then told by labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from ..alerts.alerts import close_others, open_alert
from . import reader
from .packages import Packages

EVERY_S: Final = 300.0
KIND: Final = "accuracy"


def tick(control_engine: sa.Engine, telemetry_engine: sa.Engine, blobs: Path, now_ms: int) -> None:
    told = reader.read(control_engine, telemetry_engine, Packages(control_engine, blobs), now_ms=now_ms)
    keys = set()
    with control_engine.begin() as connection:
        for model in told["models"]:
            for one in model["slices"]:
                if one["expected"] is None or one["expected"]["holds"] != "disagrees":
                    continue
                key = ":".join((KIND, one["digest"], one["variant"], one["cohort"], one["context"]))
                keys.add(key)
                expected = one["expected"]
                there = ", ".join(filter(None, (one["cohort"], one["context"])))
                where = f"{model['model']} {one['version']} in {there or 'a fleet without a name'}"
                text = (
                    f"labels of {one['label_days']} days say that {where} is right in {expected['right']:.0%} of "
                    f"{expected['labels']}, where its confidence said {expected['confidence']:.0%}"
                )
                open_alert(
                    connection,
                    key,
                    severity="ticket",
                    kind=KIND,
                    subject=model["model"],
                    text=text,
                    detail={"model": model["model"], "version": one["version"], "expected": expected},
                    now_ms=now_ms,
                )
        close_others(connection, KIND, frozenset(keys), now_ms=now_ms)
