"""What a kept step is known by: every module that computes it, the tools, and the processor where it matters."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgewright_compiler
from edgewright_compiler.measuring.machine import describe
from edgewright_compiler.pipeline import candidates, learn, workbench
from edgewright_compiler.pipeline.choice import Arch
from edgewright_compiler.pipeline.files import File
from edgewright_compiler.pipeline.steps import Step, Store
from edgewright_compiler.pipeline.workbench import RUNTIME, Workbench, modules
from edgewright_compiler.recipe import Recipe
from edgewright_models.digits.recipe import Settings, recipe

HERE = Path(edgewright_compiler.__file__).parent
KEEPS = (  # what a step imports and what changes nothing in it: it keeps, names, reads (by content) or chooses
    "disk.py", "packaging.py", "data/", "measuring/evidence.py", "pipeline/steps.py", "pipeline/choice.py",
)  # fmt: skip
STEPS = {  # the parts of a key: the modules that make the step, and what they import for other steps or as a type only
    workbench.LEARNING: (
        ("pipeline/learn.py", "pipeline/teaching.py"), ("pipeline/clocked.py", "quantization/qat.py"),
    ),
    workbench.CLOCKED + workbench.LEARNING: (("pipeline/clocked.py",), ("pipeline/learn.py",)),
    workbench.FOR_INT8 + workbench.LEARNING: (("pipeline/learn.py",), ("pipeline/clocked.py",)),
    workbench.TRUTH: (("graph/graph.py", "graph/reference.py"), ()),
    workbench.BUILDING: (("graph/graph.py", "export/onnx.py", "export/tflite.py"), (RUNTIME,)),
    workbench.HEATED: (
        ("pipeline/build.py",), ("pipeline/learn.py", "pipeline/files.py", "quantization/schemes.py", RUNTIME),
    ),
    workbench.TRYING: (("graph/graph.py", "export/onnx.py", "export/tflite.py"), (RUNTIME,)),
    workbench.QUANTIZING: (("pipeline/files.py", "quantization/onnx.py", "quantization/tflite.py"), (RUNTIME,)),
    workbench.REFINING: (("pipeline/refinement.py", "quantization/onnx.py", "quantization/tflite.py"), ()),
    workbench.ANSWERING: (("graph/reference.py", "pipeline/files.py"), ("quantization/",)),
    workbench.TIMING: (("measuring/latency.py", "pipeline/files.py"), ("quantization/",)),
}  # fmt: skip


def imports(module: str) -> set[str]:
    """Modules of the compiler, and RUNTIME, that this one imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((HERE / module).read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            found |= {RUNTIME} if (node.module or "").startswith("edgewright_runtime") else set()
            continue
        base = (HERE / module).parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for path in (base.with_suffix(".py"), *(base / f"{name.name}.py" for name in node.names)):
            found |= {path.relative_to(HERE).as_posix()} if path.is_file() else set()
    return found


@pytest.mark.parametrize("key", STEPS)
def test_every_module_that_a_step_computes_with_is_in_its_key(key: tuple[str, ...]) -> None:
    first, others = STEPS[key]
    waiting, seen = list(first), set[str]()
    while waiting:
        module = waiting.pop()
        if module not in seen and not module.startswith((*KEEPS, *others)):
            seen.add(module)
            waiting += [] if module == RUNTIME or module in workbench.COMMON else imports(module)
    known = {*modules((*workbench.COMMON, *key)), *({RUNTIME} & {*key})}
    assert seen > {*first}, "imports are found"
    assert sorted(seen - known) == []


def test_parts_of_a_key_are_files_of_the_compiler_and_of_the_runtimes() -> None:
    found = modules(("rows.py", "export", RUNTIME))
    assert {"rows.py", "export/onnx.py", "edgewright_runtime/onnx.py"} <= {*found}
    assert all(path.is_file() for key in STEPS for path in modules(key).values())


class Asked(Exception):
    """The step that was asked for, before it is made."""


class Nothing(Store):
    def get(self, step: Step, make: Callable[[Path], None]) -> Path:
        raise Asked(step)


def asked(root: Path, made: Recipe, ask: Callable[[Workbench], object]) -> Step:
    bench = Workbench(made, seed=1, store=Nothing(root, lambda: 0.0), say=lambda _stage, _share: None)
    with pytest.raises(Asked) as found:
        ask(bench)
    step: Step = found.value.args[0]
    return step


def test_what_a_clock_prunes_depends_on_what_the_clock_measures(tmp_path: Path) -> None:
    digits = recipe(Settings())
    assert digits.prune is not None
    assert digits.student is not None
    before = learn.Learned("student-0", lambda: digits.student(1.0), tmp_path)  # type: ignore[misc]
    steps = {
        target: asked(
            tmp_path,
            replace(digits, prune=replace(digits.prune, target=target)),  # type: ignore[arg-type]
            lambda bench: learn._pruned(bench, before, 0.5, None, None),
        )
        for target in ("macs", "latency")
    }
    assert {"onnxruntime", "onnxslim"} <= {*steps["latency"].facts["tools"]}
    assert "onnxruntime" not in steps["macs"].facts["tools"]
    assert steps["macs"].facts["code"] != steps["latency"].facts["code"]


def test_answers_and_times_depend_on_the_runtimes(tmp_path: Path) -> None:
    digits = recipe(Settings())
    file = File("onnx-0", tmp_path / "model.onnx", digits.input, ())
    answers = asked(tmp_path, digits, lambda bench: candidates.answers(bench, file, "test", {}))
    machine = describe()
    times = asked(tmp_path, digits, lambda bench: candidates.measured(bench, {"onnx-fp32": file}, machine))
    for step in (answers, times):
        assert "onnxruntime" in step.facts["tools"]
    assert answers.facts["code"] == workbench.code_hash((*workbench.COMMON, *workbench.ANSWERING))
    assert times.facts["code"] == workbench.code_hash(workbench.TIMING)


@pytest.mark.skipif(workbench.torch.cuda.is_available(), reason="CUDA has its own half precision everywhere")
def test_weights_of_mixed_training_are_known_by_whether_the_processor_has_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = recipe(Settings())
    for mixed in (False, True):
        schedule = replace(digits.schedule, mixed=mixed)
        names = set()
        for there in (False, True):
            monkeypatch.setattr(workbench, "bfloat16_here", lambda there=there: there)
            workbench.platform_of.cache_clear()
            step = asked(
                tmp_path, replace(digits, schedule=schedule), lambda bench: learn.student(bench, Arch(share=1.0), None)
            )
            names.add(step.name)
        assert len(names) == (2 if mixed else 1)
    monkeypatch.undo()
    workbench.platform_of.cache_clear()
