"""A whole agent: what it does for an application whose model fails, and on a device that is short of something."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_agent.inference.breaker import FAILURES
from edgewright_agent.inference.model import InferenceFailed
from edgewright_contracts.errors import Unavailable
from sim import packages


class Broken:
    runtime, version, concurrent = "onnxruntime", "1", True

    def run(self, inputs):
        raise ValueError("kernel")


def test_the_hub_hears_of_a_breaker_and_the_application_gets_its_fallback(world):
    package = world.package("v1")
    image = packages.draw(1, seed=4)[0][0]
    with world.agent() as agent:
        world.want(package)
        model = agent.model("digits")
        assert model.wait(60)
        model.active.run = Broken().run
        for _ in range(FAILURES):
            with pytest.raises(InferenceFailed):
                model.predict({"image": image})
        with pytest.raises(Unavailable, match="in a row"):
            model.predict({"image": image})
        assert agent.model("digits", fallback={"probabilities": np.zeros(10, np.float32)}) is model
        assert model.predict({"image": image}).fallback
        told = world.hub.events["dev-1"]
        assert world.hub.wait(lambda: any(e.after == "open" and "kernel" in e.reason for e in told))
        assert next(e for e in told if e.after == "open").model == "digits"
