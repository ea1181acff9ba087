"""Reference recipes: one folder per task, its `recipe.py` read from top to bottom.

`RECIPES` names the module of each; a recipe module has `Settings`, a dataclass with at least a `version`, and
`recipe(settings)`. Nothing is imported until it is asked for.
"""

from __future__ import annotations

from typing import Final

RECIPES: Final[dict[str, str]] = {
    name: f"edgewright_models.{name}.recipe"
    for name in ("digits", "mnist", "fashion", "activity", "intents", "anomaly", "announcer")
}

__all__ = ["RECIPES"]
