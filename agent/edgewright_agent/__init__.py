"""The agent on a device: counts what a model does there, reports it, and replaces the model safely.

    from edgewright_agent import Agent

    with Agent(home) as agent:
        model = agent.model("digits")
        model.wait()
        p = model.predict({"image": x})      # p.outputs, p.id, p.digest, p.variant
        agent.label(p.id, truth)

`Agent` is loaded when it is first named, so that the enrol process and the self-test's child stay small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Agent"]


def __getattr__(name: str) -> object:
    if name == "Agent":
        from .agent import Agent

        return Agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
