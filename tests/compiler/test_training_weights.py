"""Weights of someone else: what fits is taken, the rest is told, and nothing in the file is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.training.finetune import load_weights
from edgewright_contracts.errors import RequestError
from sim.nets import CLASSES, Cnn, Mlp


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_a_backbone_with_another_head_is_taken_and_the_head_is_told(tmp_path: Path) -> None:
    theirs, net = Cnn(), Cnn()
    theirs.head = nn.Linear(24, 7)
    state = {**theirs.state_dict(), "extra.bias": torch.zeros(2)}
    del state["embed.bias"]
    before = net.head.weight.clone()
    loaded = load_weights(net, saved(state, tmp_path / "w.pt"))
    assert torch.equal(net.conv1.weight, theirs.conv1.weight)
    assert torch.equal(net.head.weight, before)
    assert loaded.mismatched == (
        f"head.weight: expected ({CLASSES}, 24), got (7, 24)",
        f"head.bias: expected ({CLASSES},), got (7,)",
    )
    assert loaded.missing == ("embed.bias",)
    assert loaded.unexpected == ("extra.bias",)
    assert len(loaded.taken) == len(net.state_dict()) - 3


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
@pytest.mark.parametrize("nested", ["", "state_dict", "model_state_dict"])
def test_what_wrappers_add_is_seen_through(prefix: str, nested: str, tmp_path: Path) -> None:
    theirs, net = Mlp(), Mlp()
    state: Any = {prefix + name: value for name, value in theirs.state_dict().items()}
    loaded = load_weights(net, saved({nested: state, "epoch": 3} if nested else state, tmp_path / "w.pt"))
    assert len(loaded.taken) == len(state)
    assert (loaded.missing, loaded.mismatched, loaded.unexpected) == ((), (), ())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), theirs.parameters(), strict=True))


def test_weights_of_another_net_are_refused_with_names_of_both(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected names such as layers\.0\.weight, got names such as body\.0"):
        load_weights(Mlp(), saved({"body.0.weight": torch.zeros(2)}, tmp_path / "w.pt"))
    with pytest.raises(RequestError, match=r"got layers.0.weight: expected \(32, 6\), got \(16, 6\)"):
        load_weights(Mlp(), saved({"layers.0.weight": torch.zeros(16, 6)}, tmp_path / "w.pt"))


class Mischief:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Mischief(), "expected a state dict of tensors, as torch.save"),
        (nn.Linear(2, 2), "expected a state dict of tensors, as torch.save"),
        ([1, 2], "got list without any"),
        ({"lr": 0.1}, "got dict without any"),
    ],
)
def test_a_file_of_anything_but_tensors_is_refused_and_nothing_in_it_runs(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said):
        load_weights(Mlp(), saved(content, tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


def safetensors(tensors: dict[str, Tensor], path: Path) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_safetensors_are_read_like_a_state_dict(tmp_path: Path) -> None:
    theirs, net = Cnn(), Cnn()
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    loaded = load_weights(net, safetensors(state, tmp_path / "w.safetensors"))
    assert len(loaded.taken) == len(state)
    assert all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_safetensors_file_that_is_cut_short_is_named(keep: int, tmp_path: Path) -> None:
    path = safetensors(Mlp().state_dict(), tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RequestError, match="expected a safetensors file of plain tensors, got"):
        load_weights(Mlp(), path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected a file of weights, got nothing there"):
        load_weights(Mlp(), tmp_path / "none.pt")
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(RequestError, match="expected a state dict of tensors"):
        load_weights(Mlp(), tmp_path / "w.pt")
