"""compile, inspect, init, keys and publish: one clear line and the right exit code for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewright.main import run

TINY = Path(__file__).parent.parent / "data" / "tiny-1.0.0.ewp"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "fog", "--device", "x86-gateway"], "unknown recipe 'fog': expected one of digits"),
        (["compile", "digits", "--device", "toaster"], "unknown device 'toaster': expected one of imx8m-plus"),
        (["compile", "digits"], "Missing option '--device'"),
        (["inspect", "nothing.ewp"], "no package at nothing.ewp"),
        (["init", "mine", "--recipe", "fog"], "unknown recipe 'fog'"),
        (
            ["publish", "x", "--hub", "https://h", "--keys", "k", "--token-file", "t"],
            "expected a file that holds a token",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TINY.read_bytes()
    bad = tmp_path / "bad.ewp"
    at = data.index(b"TFL3") + 400
    for hurt in (data[: len(data) // 2], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], b"", b"PK"):
        bad.write_bytes(hurt)
        assert run(["inspect", str(bad)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "expected" in said.err


def test_inspect_shows_a_package_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(TINY)]) == 0
    assert "tflite-int8" in capsys.readouterr().out
    assert run(["inspect", str(TINY), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["manifest"]["name"] == "tiny"
    assert len(told["digest"]) == 64


def test_init_makes_a_project_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "mine"), "--recipe", "digits", "--json"]) == 0
    assert {"recipe.py", "data.py", "README.md"} <= set(json.loads(capsys.readouterr().out)["files"])
    assert run(["init", str(tmp_path / "mine"), "--recipe", "digits"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_keys_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "init", str(tmp_path / "keys"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hub"].endswith("keys/hub")
    assert run(["keys", "init", str(tmp_path / "keys")]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_a_hub_that_does_not_answer_is_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "init", str(tmp_path / "keys")]) == 0
    (tmp_path / "token").write_text("secret\n")
    arguments = [
        "--hub",
        "https://127.0.0.1:1",
        "--keys",
        str(tmp_path / "keys"),
        "--token-file",
        str(tmp_path / "token"),
    ]
    assert run(["publish", str(TINY), *arguments]) == 3
    assert "no answer from the hub" in capsys.readouterr().err
