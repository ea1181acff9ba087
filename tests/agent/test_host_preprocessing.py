"""Packages whose preprocessing is the application's: installed when the application's does what the package expects."""

from __future__ import annotations

import io

import numpy as np
import pytest

from sim import packages


def halves(n: int = 4) -> np.ndarray:
    """Raw samples of this application: images at half their brightness."""
    return packages.draw(n, seed=6)[0] // 2


def doubled(rows):
    return rows * np.uint8(2)


def shifted(rows):
    return doubled(rows) + np.uint8(1)


def broken(rows):
    raise KeyError("no vocabulary")


@pytest.fixture
def package(world):
    npz = io.BytesIO()
    np.savez(npz, **{"raw:half": halves(), "tensor:image": doubled(halves())})
    plain = world.package("v1")
    return world.altered(plain, "host", version="2.0.0", preprocess="host", replaced={"golden.npz": npz.getvalue()})


def test_it_is_refused_without_blame_until_the_application_names_what_makes_the_packages_tensors(world, package):
    with world.agent() as agent:

        def last():
            return next(e for e in reversed(world.hub.events["dev-1"]) if e.model)

        world.want(package)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == ["idle", "fetch", "idle"])
        assert (last().failure, last().reason[:40]) == ("operator", "expected the application's preprocessing")
        assert "agent.model('digits', transform=function)" in last().reason
        assert not (world.home("dev-1") / "models" / "digits" / "parts").exists()  # nothing was downloaded for nothing
        tried = ["fetch", "stage", "selftest", "idle"]
        agent.model("digits", transform=broken)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[3:] == tried)
        assert last().failure == "operator"
        assert "fails on the package's own samples: KeyError: 'no vocabulary'" in last().reason
        agent.model("digits", transform=shifted)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[7:] == tried)
        assert last().failure == "operator"
        assert "the application's preprocessing: image: sample 0: expected" in last().reason
        assert agent.model("digits").active is None
        agent.model("digits", transform=doubled)
        assert agent.model("digits").wait(60)
        assert agent.model("digits").predict({"image": doubled(halves())[0]}).digest == package.digest
        agent.model("digits", transform=shifted)  # the application was updated, and not for the better
        assert world.hub.wait(lambda: last().reason.startswith("2.0.0 answers, but the application's preprocessing:"))
        assert agent.model("digits").active is not None
    assert not any(e.after == "blocked" for e in world.hub.events["dev-1"])
    assert list((world.home("dev-1") / "models" / "digits").rglob("golden.npz"))


def test_vectors_that_are_not_of_the_package_are_its_own_fault(world):
    bad = world.altered(world.package("v1"), "bad", preprocess="host", replaced={"golden.npz": b"no archive"})
    with world.agent() as agent:
        agent.model("digits", transform=doubled)
        world.want(bad)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1:] == ["blocked"])
    assert any("golden.npz: expected an npz archive" in e.reason for e in world.hub.events["dev-1"])
