"""A whole device beside a hub and a repository in memory; only the network and the broker are simulated."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgewright_agent.agent import Agent
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation
from edgewright_contracts.manifest import FileRef, encode_manifest
from edgewright_contracts.package import Package, read_package
from sim import packages
from sim.broker import SimBroker, SimTransport
from sim.hub import SimHub
from sim.repository import Repository


class World:
    """`device()` makes agents; `want(package)` is what the hub would retain for all of them."""

    def __init__(self, folder: Path, url: str, repository: Repository) -> None:
        self.folder, self.url, self.repository = folder, url, repository
        self.broker = SimBroker()
        self.hub = SimHub(self.broker)
        self.rev = 0
        self.links: dict[str, SimTransport] = {}

    def package(self, label: str, **knobs):
        package = packages.make_package(self.folder / "packages" / label, **knobs)
        self.repository.publish(package)
        return package

    def altered(self, package, label: str, *, replaced: dict[str, bytes] | None = None, **fields):
        """The same package under another manifest, with some files replaced."""
        folder = self.folder / "packages" / label
        shutil.copytree(package.root, folder)
        for name, data in (replaced or {}).items():
            (folder / name).write_bytes(data)
            ref = FileRef(hashlib.sha256(data).hexdigest(), len(data))
            fields["files"] = {**fields.get("files", package.manifest.files), name: ref}
        (folder / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(package.manifest, **fields)))
        found = read_package(folder)
        self.repository.publish(found)
        return found

    def home(self, device: str) -> Path:
        home = self.folder / device
        folder = home / "identity"
        folder.mkdir(parents=True, exist_ok=True)
        said = {"device": device, "broker": {"host": "127.0.0.1", "port": 1}, "repo": self.url}
        (folder / "hub.json").write_bytes(msgspec.json.encode(said))
        (folder / "root.json").write_bytes(self.repository.root)
        return home

    def agent(self, device: str = "dev-1", **seams) -> Agent:
        link = self.links[device] = SimTransport(self.broker, device)
        return Agent(self.home(device), transport=link, **seams)

    def want(
        self, package, device: str = "dev-1", *, rollout: str = "", windows: int = 1, window_s: float = 0.5,
        max_s: float = 60.0, cleared: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.rev += 1
        model = DesiredModel(
            name="digits",
            digest=package.digest if package else None,
            rollout=rollout,
            probation=Probation(windows=windows, max_s=max_s),
        )
        config = Config(window_s=window_s, rollout_window_s=window_s)
        self.hub.want(device, Desired(rev=self.rev, config=config, models=(model,), cleared_digests=cleared))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


@pytest.fixture
def package(tmp_path: Path, repository: Repository) -> Package:
    """One that the repository serves."""
    package = packages.make_package(tmp_path / "p")
    repository.publish(package)
    return package


@pytest.fixture
def world(tmp_path: Path, repository: Repository) -> Iterator[World]:
    with repository.served() as url:
        yield World(tmp_path, url, repository)
