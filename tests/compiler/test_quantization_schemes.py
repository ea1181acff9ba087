"""Which ways to quantize are worth trying for a graph on a device."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from edgewright_compiler.graph.tap import Tapped
from edgewright_compiler.quantization.islands import Node, follow
from edgewright_compiler.quantization.schemes import Kinds, Scheme, layer_kinds, schemes
from edgewright_devices import load
from sim.nets import case

X86 = replace(load("x86-gateway"), int8_dot=False)
VNNI = replace(X86, int8_dot=True)
ARM = load("raspberry-pi-4")


def kinds(name: str) -> Kinds:
    return layer_kinds(Tapped(case(name).build()))


def ids(*found: Scheme) -> list[str]:
    return [scheme.id for scheme in found]


@pytest.mark.parametrize("name", ["cnn", "depthwise", "gru", "mlp", "transformer", "autoencoder", "detector"])
def test_float_comes_first_and_every_scheme_can_name_a_variant(name):
    for device in (X86, VNNI, ARM):
        found = [*schemes("onnx", device, kinds(name)), *schemes("tflite", device, kinds(name))]
        assert found[0].method == "none"
        assert len(set(ids(*found))) == len(found)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", scheme.id) for scheme in found)


def test_weights_keep_seven_bits_where_products_of_eight_saturate():
    for device, expected in ((X86, True), (VNNI, False), (ARM, False)):
        made = [s for s in schemes("onnx", device, kinds("cnn")) if s.method == "static"]
        assert made
        assert all(s.reduce_range is expected for s in made)


def test_signed_activations_are_tried_on_arm_only():
    assert "s8" in {s.activations for s in schemes("onnx", ARM, kinds("cnn"))}
    assert "s8" not in {s.activations for s in schemes("onnx", X86, kinds("cnn"))}


def test_every_way_of_calibration_is_tried():
    assert {"minmax", "percentile", "entropy"} <= {s.calibration for s in schemes("onnx", X86, kinds("cnn"))}


def test_depthwise_convolutions_are_tried_in_float_too():
    (mixed,) = [s for s in schemes("onnx", X86, kinds("depthwise")) if s.float_layers]
    assert mixed.precision == "mixed"
    assert mixed.float_layers == ("net.net.blocks.0.body.3", "net.net.blocks.1.body.3")


def test_a_transformer_is_quantized_dynamically_only():
    assert {s.method for s in schemes("onnx", X86, kinds("transformer"))} == {"none", "dynamic"}
    assert {s.method for s in schemes("tflite", X86, kinds("transformer"))} == {"none", "dynamic", "fp16"}


def test_convolutions_are_never_quantized_dynamically_by_onnxruntime():
    assert "dynamic" not in {s.method for s in schemes("onnx", X86, kinds("cnn"))}


def test_an_unrolled_gru_stays_float_in_static_tflite():
    (static,) = [s for s in schemes("tflite", X86, kinds("gru")) if s.calibrated]
    assert static.float_layers == ("net.net.gru",)


def test_nothing_but_float_is_worth_trying_without_layers():
    assert ids(*schemes("onnx", X86, Kinds()), *schemes("tflite", X86, Kinds())) == ["onnx-fp32", "tflite-fp32"]


def test_layers_in_another_order_make_the_same_scheme():
    scheme = Scheme(format="onnx", precision="int8", method="static", calibration="minmax", activations="u8")
    assert scheme.keeping(("a", "b")) == scheme.keeping(("b",)).keeping(("a",))
    assert scheme.keeping(()) == scheme


def chain(*parts: str) -> list[Node]:
    return [Node((i,), (i + 1,), part) for i, part in enumerate(parts)]


def test_operators_between_two_layers_become_int8_and_those_around_them_do_not():
    assert follow(chain("between", "layer", "activation", "between", "layer", "between")) == [1, 2, 3, 4]


def test_a_rectifier_behind_the_last_layer_goes_with_it():
    assert follow(chain("layer", "activation", "between")) == [0, 1]


def test_a_float_layer_keeps_its_neighbours_float():
    assert follow(chain("layer", "between", "float", "between", "layer")) == [0, 4]


def test_a_sum_of_an_int8_branch_and_an_input_that_is_float_follows_when_it_leads_to_a_layer():
    nodes = [Node(("x",), ("a",), "layer"), Node(("a", "x"), ("s",), "between"), Node(("s",), ("y",), "layer")]
    assert follow(nodes) == [0, 1, 2]


def test_the_longest_id_fits_where_a_variant_is_named():
    longest = Scheme(
        format="onnx",
        precision="int8",
        method="static",
        calibration="entropy",
        activations="s8",
        reduce_range=True,
    )
    assert len(longest.keeping(("a",)).id) <= 32
