"""Silence: what converters print is kept away, what a command says is not, and a crash still shows its end."""

from __future__ import annotations

import os

import pytest

from edgewright_compiler.quiet import quiet
from edgewright_contracts.errors import Refused


def test_noise_of_any_kind_stays_inside_and_the_streams_still_speak(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet() as streams:
        os.write(1, b"noise of a C++ library\n")
        os.write(2, b"more of it\n")
        print("said", file=streams.out)
        print("shown", file=streams.err)
    os.write(1, b"after\n")
    captured = capfd.readouterr()
    assert captured.out == "said\nafter\n"
    assert captured.err == "shown\n"


def noisy(noise: bytes, error: Exception) -> None:
    with quiet():
        os.write(2, noise)
        raise error


def test_an_expected_failure_speaks_for_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused):
        noisy(b"noise\n", Refused("no"))
    assert capfd.readouterr().err == ""


def test_a_crash_shows_what_was_said_last(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"):
        noisy(b"x" * 9000 + b"the last words\n", ValueError("boom"))
    said = capfd.readouterr().err
    assert said.endswith("the last words\n")
    assert len(said) < 5000
