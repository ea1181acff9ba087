"""A model inside an application: predict, and tell the agent later what was true.

    python examples/in_process.py HOME [IMAGES]

HOME is what `edgewright agent enroll` made, or, without a hub, `edgewright agent sideload digits.ewp`. The application
only asks: which package answers is decided elsewhere, and changes without a restart. A model that is to answer whatever
happens gets a `fallback`; `Rejected` says what is wrong with an input, `Unavailable` that no package answers.
"""

from __future__ import annotations

import signal
import sys

import numpy as np

from edgewright_agent import Agent
from edgewright_models.digits import data


def main(home: str, n: int = 1000) -> None:
    rng = np.random.default_rng()
    with Agent(home) as agent:
        model = agent.model("digits")
        print("waiting for a package …")
        model.wait()
        images, truths = data.feed(rng, n)
        for image, truth in zip(images, truths, strict=True):
            prediction = model.predict({"image": image})
            agent.label(prediction.id, int(truth))  # or agent.outcome(prediction.id, "pick_ok", True)
        print(f"{n} predictions, the last by {prediction.variant} of package {prediction.digest[:12]}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that a supervisor's stop closes the agent, too
    main(sys.argv[1], *map(int, sys.argv[2:]))
