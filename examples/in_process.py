"""A model inside an application: predict, and tell the agent later what was true.

    python examples/in_process.py HOME        # HOME as `edgewright agent enroll --home HOME` made it

The hub decides which package runs; the application only asks. Rolled out, updated and rolled back without a restart.
"""

from __future__ import annotations

import sys

import numpy as np

from edgewright_agent import Agent
from edgewright_models.digits import data


def main(home: str) -> None:
    rng = np.random.default_rng()
    with Agent(home) as agent:
        model = agent.model("digits")
        print("waiting for a package …")
        model.wait()
        images, truths = data.feed(rng, 1000)
        for image, truth in zip(images, truths, strict=True):
            prediction = model.predict({"image": image})
            agent.label(prediction.id, int(truth))  # or agent.outcome(prediction.id, "pick_ok", True)
        print(f"1000 predictions, the last by {prediction.variant} of package {prediction.digest[:12]}")


if __name__ == "__main__":
    main(sys.argv[1])
