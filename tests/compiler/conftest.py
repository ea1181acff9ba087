"""What several test files of the compiler share because it takes seconds to make."""

from __future__ import annotations

import pytest

from sim.graphs import Exported
from sim.graphs import exported as export
from sim.nets import case


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Both files of a net with depthwise convolutions, residual sums and a mean over space, beside a float monitor."""
    return export(case("depthwise"), tmp_path_factory.mktemp("exported"))
