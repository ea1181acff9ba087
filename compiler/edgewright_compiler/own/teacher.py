"""A finished file as the teacher, tried on training rows before anything is trained.

Exported classifiers end in logits or in probabilities, and nothing in the file says in which: their answers do. In
[0, 1] on every row that is tried, and with a sum of 1 where one class excludes the others, they are probabilities,
else logits. Cost: the file answers up to ROWS rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import EdgewrightError, RequestError
from edgewright_contracts.manifest import Task, TensorIn, TensorOut
from edgewright_runtime.runtime import SUFFIXES, open_session

from ..foreign.borders import ONNX_DTYPES, tflite_borders
from ..foreign.surgery import session
from ..graph.reference import run
from ..recipe import Teacher
from ..rows import Data, Rows, take
from ..training.distill import ROUNDING

ROWS: Final = 256
_COARSE: Final = 0.01  # levels of int8 that hold probabilities are 1/256 to 1/127 apart
_FLOATS: Final = ("float32", "float16")
_QUANTIZED: Final = ("int8", "uint8", "int16")  # a TFLite file says what they stand for, an ONNX file does not

Floats = npt.NDArray[np.floating]


def finished_teacher(file: Path, task: Task, input_: TensorIn, rows: Data) -> tuple[Teacher, str]:
    """The teacher, and a line for the model card that says what its answers were taken for.

    Raises RequestError for a file of another format, a task that a file cannot teach, a file that does not take the raw
    rows, or answers that are several, not float, not finite, or not one for each class; what `open_session` raises
    passes through.
    """
    if file.suffix not in (".onnx", ".tflite"):
        raise RequestError(f"{file}: a teacher is FILE.py:FUNCTION, .onnx or .tflite")
    if task not in ("classification", "multilabel", "regression"):
        raise RequestError(f"{file}: a finished file cannot teach {task}; give the teacher as FILE.py:FUNCTION")
    _one_of_floats(file)
    at = np.unique(np.linspace(0, len(rows.train) - 1, min(ROWS, len(rows.train))).astype(np.int64))
    answers = _answers(file, input_, take(rows.train.inputs, at))
    size = rows.train.labels.shape[1] if task == "regression" else len(rows.labels)
    if answers.shape != (len(at), size):
        wanted = "value for each target" if task == "regression" else f"for each class ({_listed(rows.labels)})"
        raise RequestError(
            f"{file}: answers {list(answers.shape)} to {len(at)} training rows: expected {[len(at), size]}, one "
            f"{wanted}, in the order of the data"
        )
    if not np.isfinite(answers).all():
        row = int(at[np.argmin(np.isfinite(answers).all(axis=1))])
        raise RequestError(
            f"{file}: answers NaN or infinity to training row {row}: does it take raw rows, as they are in the data?"
        )
    if task == "regression":
        return Teacher(file=file), f"Teacher: {file.name}, a finished file."
    logits = not _probabilities(answers, exclusive=task == "classification")
    return Teacher(file=file, logits=logits), (
        f"Teacher: {file.name}, a finished file; by what it answers to {len(at)} training rows it gives "
        f"{'logits' if logits else 'probabilities'}."
    )


def _one_of_floats(file: Path) -> None:
    if file.suffix == ".onnx":
        outputs = {node.name: ONNX_DTYPES.get(node.type, node.type) for node in session(file).get_outputs()}
        fitting: tuple[str, ...] = _FLOATS
    else:
        outputs = {border.name: border.dtype for border in tflite_borders(file, {})[1]}
        fitting = _FLOATS + _QUANTIZED
    if len(outputs) != 1 or not set(outputs.values()) <= set(fitting):
        told = ", ".join(f"{name} {dtype}" for name, dtype in outputs.items())
        raise RequestError(
            f"{file}: its outputs are {told}: expected one of {' or '.join(_FLOATS)}; export the model again with "
            "nothing but its logits, probabilities or values"
        )


def _answers(file: Path, input_: TensorIn, rows: Rows) -> Floats:
    runtime = next(name for name, suffix in SUFFIXES.items() if suffix == file.suffix)
    gives = TensorOut(name="answer", role="values", shape=())
    try:
        found = run(open_session(file, runtime, inputs=(input_,), outputs=(gives,)), rows)
    except EdgewrightError:
        raise
    except Exception as error:  # what a library throws has no common base
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        count = len(next(iter(rows.values())))
        raise RequestError(
            f"{file}: does not take {count} training rows {input_.dtype} {[count, *input_.shape]}: {reason}; export it "
            "for raw rows as they are in the data, an ONNX file for any number of them"
        ) from error
    return found["answer"]  # type: ignore[return-value]


def _probabilities(answers: Floats, *, exclusive: bool) -> bool:
    if not ((answers >= -ROUNDING) & (answers <= 1 + ROUNDING)).all():
        return False
    if not exclusive:
        return True
    levels = np.unique(answers)
    step = float(np.diff(levels).min()) if len(levels) > 1 else 0.0
    beside = answers.shape[1] * step / 2 if step < _COARSE else 0.0  # in int8, each is rounded by half a step
    return bool((np.abs(answers.sum(axis=1, dtype=np.float64) - 1) <= ROUNDING + beside).all())


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
