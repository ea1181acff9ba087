"""What a device concludes from the windows of a probation."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgewright_agent.updating.health import Health, judge
from edgewright_agent.updating.quality import PrePeriod
from edgewright_agent.updating.update import Record, State
from edgewright_contracts import binning
from edgewright_contracts.manifest import Budgets
from edgewright_contracts.report import Window
from sim.reports import grid_counts


def window(n=100, errors=0, rejected=0, run_ms=1.0) -> Window:
    return Window(
        boot_id="1" * 16, mono_start_ms=0, mono_end_ms=1, wall_start_ms=None, clock="unknown", next_due_s=1,
        digest="d" * 16, variant="onnx-fp32", edge_hash="e" * 16, phase="probation", n=n,
        errors={"ValueError": errors} if errors else {}, rejected={"range": rejected} if rejected else {},
        latency_run=binning.pack_grid(grid_counts(np.full(n, int(run_ms * 1e6)))),
    )  # fmt: skip


def record(**more) -> Record:
    return Record(state=State.PROBATION, before=PrePeriod(10_000, 100, 50), **more)


NONE = Budgets()


def judged(windows, record, budgets=NONE, added_mb=100, alone=False):
    return judge(windows, record, budgets, added_mb, None, alone=alone)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (window(), Health.HEALTHY),
        (window(n=0), Health.SILENT),
        (window(errors=4), Health.HEALTHY),  # too few to say anything
        (window(errors=10), Health.BROKEN),  # 10 % against 1 %
        (window(n=1000, errors=15), Health.HEALTHY),  # 1.5 % against 1 %: left to the fleet's gates
        (window(n=1000, errors=40), Health.BROKEN),
        (window(n=0, rejected=50), Health.BROKEN),
        (window(n=1000, rejected=6), Health.HEALTHY),
    ],
)
def test_a_window_is_judged_against_the_package_before(seen, expected):
    assert judged([seen], record()).health is expected


def test_a_first_install_is_judged_against_the_limit_of_a_first_version():
    first = Record(state=State.PROBATION)
    assert judged([window(errors=3)], first).health is Health.HEALTHY
    assert judged([window(rejected=500)], first).health is Health.BROKEN
    found = judged([window(errors=50)], first)
    assert (found.health, found.reason) == (Health.BROKEN, "errors: 50 of 100, against a limit of 2%")


def test_where_no_other_package_could_answer_wrong_inputs_say_nothing_of_this_one():
    first = Record(state=State.PROBATION)
    for one in (first, record()):
        assert judged([window(rejected=500)], one, alone=True).health is Health.HEALTHY
        assert judged([window(errors=50)], one, alone=True).health is Health.BROKEN
    silent = judged([window(n=0, rejected=500)], first, alone=True)
    assert (silent.health, silent.seen.rejected) == (Health.SILENT, 500)


def test_evidence_adds_up_over_the_windows_of_a_probation():
    healths, one = [], record()
    for _ in range(8):
        found = judged([window(errors=6)], one)
        healths.append(found.health)
        one = msgspec.json.decode(msgspec.json.encode(record(seen=found.seen)), type=Record)  # as after a reboot
    assert healths[0] is Health.HEALTHY
    assert healths[-1] is Health.BROKEN
    assert one.seen.n == 800


def test_a_budget_is_broken_when_it_was_missed_three_times_in_a_row():
    budgets = Budgets(p95_ms=2)
    breaches, seen = 0, []
    for run_ms in (5, 5, 1, 5, 5, 5):
        verdict = judged([window(run_ms=run_ms)], record(breaches=breaches), budgets)
        breaches = verdict.breaches
        seen.append(verdict.health)
    strained, healthy = Health.STRAINED, Health.HEALTHY
    assert seen == [strained, strained, healthy, strained, strained, Health.BROKEN]
    assert judged([window()], record(breaches=2), Budgets(rss_mb=50)).reason == (
        "memory 100 MB more than without it, budget 50 MB"
    )


def test_windows_of_several_contexts_are_judged_together():
    verdict = judged([window(n=50, errors=3), window(n=50, errors=7)], record())
    assert verdict.health is Health.BROKEN


def test_importing_the_agent_loads_nothing_of_compiler_or_hub():
    code = "import sys, edgewright_agent.agent, edgewright_agent.serving.service; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "torch", "onnx", "onnxruntime", "fastapi", "sqlalchemy", "scipy", "edgewright_devices", "edgewright_compiler",
        "edgewright_hub", "amqtt", "click", "rich",
    }  # fmt: skip
    assert loaded & heavy == set()


def test_importing_the_agent_loads_nothing_that_only_rare_work_needs():
    code = "import sys, edgewright_agent.agent; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rare = {
        "zipfile", "subprocess", "importlib.metadata", "urllib3", "tuf", "h11", "zstandard", "cryptography",
        "edgewright_runtime.selftest", "edgewright_agent.updating.child", "edgewright_agent.updating.selftest_child",
    }  # fmt: skip
    assert set(done.stdout.split()) & rare == set()
