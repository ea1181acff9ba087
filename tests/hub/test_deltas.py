"""Patches between versions that are signed now: made in the background, only where they save, and removed with them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import zstandard
from starlette.applications import Starlette
from starlette.testclient import TestClient

from edgewright_contracts import delta
from edgewright_contracts import manifest as m
from edgewright_contracts.desired import Config, Download
from edgewright_hub.registry import deltas
from edgewright_hub.registry.registry import Registry
from edgewright_hub.rollouts.desired_documents import spread
from edgewright_hub.web.app import RepositoryFiles
from sim.releases import files_of, manifest_of, targets_of

NOW = datetime.now(UTC)
MODEL = "variants/onnx-fp32/model.onnx"


def weights(seed: int, n: int = 40_000) -> bytes:
    return np.random.default_rng(seed).bytes(n)


class Owner:
    """`publish` puts up a version whose model is `model`; `sign` says what is signed from now on."""

    def __init__(self, registry: Registry, keys: Path) -> None:
        self.registry, self._keys, self._list, self._now = registry, keys, 1, NOW

    def publish(self, version: str, model: bytes) -> bytes:
        files = {**files_of(version), MODEL: model}
        refs = {k: m.FileRef(hashlib.sha256(v).hexdigest(), len(v)) for k, v in files.items()}
        manifest = manifest_of(version, files=refs)
        for data in (*files.values(), manifest):
            asyncio.run(self.registry.put_blob(hashlib.sha256(data).hexdigest(), chunks(data)))
        return manifest

    def sign(self, *manifests: bytes) -> None:
        self._list += 1
        self._now += timedelta(seconds=1)
        self.registry.post_targets(targets_of(self._keys, self._list, *manifests), now=self._now)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def hub(registry: Registry, owner: Path) -> Owner:
    return Owner(registry, owner)


@pytest.fixture
def made(registry: Registry, control_engine: sa.Engine) -> deltas.Deltas:
    return deltas.Deltas(registry, control_engine, stop=lambda: False)


def settle(made: deltas.Deltas) -> int:
    """Turns until nothing is left to do."""
    turns = 1
    while made.tick():
        turns += 1
    return turns


def place(registry: Registry, old: bytes, new: bytes) -> Path:
    return registry.folder / delta.path(*(hashlib.sha256(model).hexdigest() for model in (old, new)))


def test_a_patch_is_made_of_each_earlier_version_and_makes_the_new_file(hub: Owner, made: deltas.Deltas) -> None:
    old = weights(1)
    new = old[:-2000] + weights(2, 2000)
    first, second = hub.publish("1.0.0", old), hub.publish("2.0.0", new)
    hub.sign(first)
    assert settle(made) == 1
    hub.sign(first, second)
    settle(made)
    patch = place(hub.registry, old, new).read_bytes()
    assert len(patch) < 0.06 * len(new)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    assert zstandard.ZstdDecompressor(dict_data=dictionary).decompress(patch) == new
    assert not place(hub.registry, new, old).exists()


def test_nothing_is_made_twice_also_after_a_restart(
    hub: Owner, made: deltas.Deltas, control_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, alien = weights(1), weights(9)
    new = old[:-100] + weights(2, 100)
    hub.sign(*(hub.publish(f"{n}.0.0", model) for n, model in enumerate((old, new, alien))))
    settle(made)
    monkeypatch.setattr(deltas, "make", lambda *_, **__: pytest.fail("made again"))
    assert settle(made) == 1
    assert settle(deltas.Deltas(hub.registry, control_engine, stop=lambda: False)) == 1


def test_a_patch_that_saves_too_little_is_not_kept(hub: Owner, made: deltas.Deltas) -> None:
    old, new = weights(1), weights(2)
    hub.sign(hub.publish("1.0.0", old), hub.publish("2.0.0", new))
    settle(made)
    assert not place(hub.registry, old, new).exists()
    with TestClient(Starlette()) as client:
        client.app.mount("/repo", RepositoryFiles(directory=hub.registry.folder))  # type: ignore[attr-defined]
        folder = place(hub.registry, old, new).parent
        assert [client.get(f"/repo/deltas/{folder.name}/{file.name}").status_code for file in folder.iterdir()] == [404]


def test_patches_of_withdrawn_versions_go(hub: Owner, made: deltas.Deltas) -> None:
    old = weights(1)
    new = old[:-100] + weights(2, 100)
    first, second = hub.publish("1.0.0", old), hub.publish("2.0.0", new)
    hub.sign(first, second)
    settle(made)
    hub.sign(second)
    settle(made)
    assert list((hub.registry.folder / "deltas").iterdir()) == []


def test_what_runs_for_longer_than_three_versions_is_not_patched(hub: Owner, made: deltas.Deltas) -> None:
    base = weights(0)
    models = [base[:-100] + weights(seed, 100) for seed in range(1, 6)]
    manifests: list[bytes] = []
    for number, model in enumerate(models):
        manifests.append(hub.publish(f"{number}.0.0", model))
        hub.sign(*manifests)
    settle(made)
    newest = [place(hub.registry, old, models[-1]).exists() for old in models[:-1]]
    assert newest == [False, True, True, True]


def test_small_and_large_files_are_left_alone() -> None:
    ref = m.FileRef("a" * 64, delta.SMALLEST)
    assert delta.fits(ref, m.FileRef("b" * 64, delta.SMALLEST))
    assert not delta.fits(ref, ref)
    assert not delta.fits(ref, m.FileRef("b" * 64, delta.SMALLEST - 1))
    assert not delta.fits(ref, m.FileRef("b" * 64, delta.PAIR_BYTES))


def test_the_end_of_the_hub_breaks_off_what_is_being_made(hub: Owner, control_engine: sa.Engine) -> None:
    old = weights(1)
    new = old[:-100] + weights(2, 100)
    hub.sign(hub.publish("1.0.0", old), hub.publish("2.0.0", new))
    ending = deltas.Deltas(hub.registry, control_engine, stop=lambda: True)
    assert not ending.tick()
    assert not place(hub.registry, old, new).exists()


def test_patches_are_served_in_parts_and_told_apart_by_etag(hub: Owner, made: deltas.Deltas) -> None:
    old = weights(1)
    new = old[:-9000] + weights(2, 9000)
    hub.sign(hub.publish("1.0.0", old), hub.publish("2.0.0", new))
    settle(made)
    patch = place(hub.registry, old, new)
    url = f"/repo/deltas/{patch.parent.name}/{patch.name}"
    with TestClient(Starlette()) as client:
        client.app.mount("/repo", RepositoryFiles(directory=hub.registry.folder))  # type: ignore[attr-defined]
        whole = client.get(url)
        rest = client.get(url, headers={"Range": "bytes=1000-", "If-Range": whole.headers["ETag"]})
        other = client.get(url, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
    assert (whole.status_code, rest.status_code, other.status_code) == (200, 206, 200)
    assert rest.content == patch.read_bytes()[1000:]
    assert rest.headers["Content-Range"].startswith("bytes 1000-")


@pytest.mark.parametrize(("devices", "spread_s"), [(0, 0), (255, 0), (256, 16), (511, 16), (10_000, 512)])
def test_a_large_fleet_does_not_come_for_one_package_at_once(devices: int, spread_s: float) -> None:
    assert spread(Config(), devices).download.spread_s == spread_s
    operators = Config(download=Download(bytes_per_s=1000, spread_s=3600.0))
    assert spread(operators, devices) == operators
