"""What a device runs of a package, and when it says that the package is for another."""

from __future__ import annotations

import msgspec
import pytest

from edgewright_agent.updating.choice import choose, release
from edgewright_agent.updating.failures import Unsuited
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import FileRef
from sim import packages

WANTED = DesiredModel(name="digits", digest="a" * 64)
HERE = {"agent": "0.1.0", "arch": "x86_64", "runtimes": ("litert", "onnxruntime")}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return packages.make_package(tmp_path_factory.mktemp("package") / "p", with_tflite=True).manifest


def test_the_first_runtime_of_the_device_that_the_package_ranks_is_taken(manifest):
    variant, runtime = choose(manifest, WANTED, **HERE)
    assert (variant.id, runtime) == ("tflite-fp32", "litert")


def test_a_pinned_variant_is_taken_or_nothing(manifest):
    pinned = msgspec.structs.replace(WANTED, variant="onnx-fp32")
    assert choose(manifest, pinned, **HERE)[1] == "onnxruntime"
    with pytest.raises(Unsuited, match="expected a variant onnx-int8 for x86_64 with litert or onnxruntime"):
        choose(manifest, msgspec.structs.replace(WANTED, variant="onnx-int8"), **HERE)


def test_a_package_of_another_architecture_is_for_another_device(manifest):
    other = msgspec.structs.replace(manifest, ranking={"aarch64/litert": ("tflite-fp32",)})
    with pytest.raises(Unsuited, match="has aarch64/litert"):
        choose(other, WANTED, **HERE)
    with pytest.raises(Unsuited, match="no runtime at all"):
        choose(manifest, WANTED, **{**HERE, "runtimes": ()})


@pytest.mark.parametrize(
    ("needs", "suits"), [("0.1", True), ("0.1.0", True), ("0.0.9", True), ("0.1.1", False), ("1", False)]
)
def test_a_package_for_a_later_agent_is_refused_with_both_versions(manifest, needs, suits):
    later = msgspec.structs.replace(manifest, requires_agent=needs)
    if suits:
        choose(later, WANTED, **HERE)
        return
    with pytest.raises(Unsuited, match=f"expected agent >= {needs}, this is 0.1.0"):
        choose(later, WANTED, **HERE)


def test_a_package_whose_preprocessing_is_the_applications_needs_it_named_and_vectors_to_check_it_by(manifest):
    host = msgspec.structs.replace(manifest, preprocess="host")
    with pytest.raises(ContractError, match=r"golden\.npz, for preprocess is host"):
        choose(host, WANTED, **HERE, transform=True)
    checked = msgspec.structs.replace(host, files={**host.files, "golden.npz": FileRef("0" * 64, 1)})
    with pytest.raises(Unsuited, match=r"agent\.model\('digits', transform=function\).* by front\(data\) instead"):
        choose(checked, WANTED, **HERE)
    assert choose(checked, WANTED, **HERE, transform=True)[1] == "litert"


def test_a_package_of_another_name_is_not_what_was_wanted(manifest):
    with pytest.raises(ContractError, match=r"manifest\.name"):
        choose(manifest, DesiredModel(name="kws", digest="a" * 64), **HERE)


def test_versions_are_compared_by_their_numbers():
    assert release("0.10") > release("0.9.9")
    assert release("1.0.0") == release("1") == release("1.0rc1")
    assert release("banana") == ()
