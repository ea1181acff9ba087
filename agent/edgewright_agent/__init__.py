"""The agent: `with Agent(home) as agent: agent.model("kws").predict({"audio": x})`.

Importing this package imports nothing else; `Agent` and its errors come with the first use of their name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent
    from .inference.model import InferenceFailed, Model, Prediction, Rejected

__all__ = ["Agent", "InferenceFailed", "Model", "Prediction", "Rejected"]

_PLACES = {
    "Agent": ".agent",
    "InferenceFailed": ".inference.model",
    "Model": ".inference.model",
    "Prediction": ".inference.model",
    "Rejected": ".inference.model",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)
