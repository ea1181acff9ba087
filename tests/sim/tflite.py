"""A writer of small TFLite files: the flatbuffer schema of ai-edge-litert and nothing else, a millisecond."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as s

_TYPES = {
    "float32": s.TensorType.FLOAT32,
    "uint8": s.TensorType.UINT8,
    "int8": s.TensorType.INT8,
    "int32": s.TensorType.INT32,
}


class Graph:
    """Each method adds one operator and returns the index of its output tensor; shapes have the batch of 1."""

    def __init__(self) -> None:
        self._model = s.ModelT()
        self._model.version = 3
        self._model.operatorCodes = []
        self._model.buffers = [s.BufferT()]  # buffer 0 is empty by convention
        self._graph = s.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._graph.inputs, self._graph.outputs = [], []

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> int:
        index = self._tensor(name, shape, dtype)
        self._graph.inputs.append(index)
        return index

    def output(self, name: str, tensor: int) -> None:
        self._graph.tensors[tensor].name = name
        self._graph.outputs.append(tensor)

    def cast(self, x: int, dtype: str = "float32") -> int:
        return self._op("CAST", [x], self.shape(x), dtype=dtype)

    def reshape(self, x: int, shape: tuple[int, ...]) -> int:
        options = s.ReshapeOptionsT()
        options.newShape = list(shape)
        return self._op("RESHAPE", [x, self._const(np.array(shape, np.int32))], shape, options, "ReshapeOptions")

    def scale(self, x: int, factor: float) -> int:
        return self.mul(x, self._const(np.array([factor], np.float32)))

    def mul(self, a: int, b: int) -> int:
        return self._op("MUL", [a, b], self.shape(a), s.MulOptionsT(), "MulOptions")

    def sub(self, a: int, b: int) -> int:
        return self._op("SUB", [a, b], self.shape(a), s.SubOptionsT(), "SubOptions")

    def sqrt(self, x: int) -> int:
        return self._op("SQRT", [x], self.shape(x))

    def mean(self, x: int) -> int:
        """Over all but the batch, as [1, 1]."""
        options = s.ReducerOptionsT()
        options.keepDims = True
        axes = np.arange(1, len(self.shape(x)), dtype=np.int32)
        return self._op("MEAN", [x, self._const(axes)], (1,) * len(self.shape(x)), options, "ReducerOptions")

    def softmax(self, x: int) -> int:
        options = s.SoftmaxOptionsT()
        options.beta = 1.0
        return self._op("SOFTMAX", [x], self.shape(x), options, "SoftmaxOptions")

    def logistic(self, x: int) -> int:
        return self._op("LOGISTIC", [x], self.shape(x))

    def concat(self, parts: list[int]) -> int:
        options = s.ConcatenationOptionsT()
        options.axis = 1
        return self._op(
            "CONCATENATION", parts, (1, sum(self.shape(p)[1] for p in parts)), options, "ConcatenationOptions"
        )

    def dense(self, x: int, w: npt.NDArray[np.float32], b: npt.NDArray[np.float32], *, relu: bool = False) -> int:
        """x @ w + b, with w [in, out]."""
        options = s.FullyConnectedOptionsT()
        options.fusedActivationFunction = int(relu)
        weights = self._const(np.ascontiguousarray(w.T))
        return self._op(
            "FULLY_CONNECTED", [x, weights, self._const(b)], (1, w.shape[1]), options, "FullyConnectedOptions"
        )

    def conv(self, x: int, w: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> int:
        """Same-padded convolution with relu; x [1, h, w, in], w [out, kh, kw, in]."""
        options = s.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = s.Padding.SAME, 1, 1
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = 1
        shape = (*self.shape(x)[:3], w.shape[0])
        return self._op("CONV_2D", [x, self._const(w), self._const(b)], shape, options, "Conv2DOptions")

    def quantize(self, x: int, scale: float, zero: int, dtype: str = "int8") -> int:
        index = self._op("QUANTIZE", [x], self.shape(x), s.QuantizeOptionsT(), "QuantizeOptions", dtype=dtype)
        self._quantized(index, scale, zero)
        return index

    def dequantize(self, x: int) -> int:
        return self._op("DEQUANTIZE", [x], self.shape(x), s.DequantizeOptionsT(), "DequantizeOptions")

    def quantized_input(self, name: str, shape: tuple[int, ...], scale: float, zero: int, dtype: str = "int8") -> int:
        index = self.input(name, shape, dtype)
        self._quantized(index, scale, zero)
        return index

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._graph.tensors[tensor].shape)

    def finish(self) -> bytes:
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _quantized(self, tensor: int, scale: float, zero: int) -> None:
        q = s.QuantizationParametersT()
        q.scale, q.zeroPoint = [scale], [zero]
        self._graph.tensors[tensor].quantization = q

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str, buffer: int = 0) -> int:
        t = s.TensorT()
        t.name, t.shape, t.type, t.buffer = name, list(shape), _TYPES[dtype], buffer
        self._graph.tensors.append(t)
        return len(self._graph.tensors) - 1

    def _const(self, array: npt.NDArray[Any]) -> int:
        buffer = s.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        return self._tensor(
            f"const{len(self._model.buffers)}", array.shape, str(array.dtype), len(self._model.buffers) - 1
        )

    def _op(
        self,
        name: str,
        inputs: list[int],
        shape: tuple[int, ...],
        options: Any = None,
        kind: str = "NONE",
        dtype: str = "float32",
    ) -> int:
        code = getattr(s.BuiltinOperator, name)
        codes = [c.builtinCode for c in self._model.operatorCodes]
        if code not in codes:
            oc = s.OperatorCodeT()
            oc.builtinCode, oc.deprecatedBuiltinCode, oc.version = code, min(code, 127), 1
            self._model.operatorCodes.append(oc)
            codes.append(code)
        op = s.OperatorT()
        op.opcodeIndex, op.inputs = codes.index(code), inputs
        op.builtinOptions, op.builtinOptionsType = options, getattr(s.BuiltinOptions, kind)
        out = self._tensor(f"t{len(self._graph.tensors)}", shape, dtype)
        op.outputs = [out]
        self._graph.operators.append(op)
        return out
