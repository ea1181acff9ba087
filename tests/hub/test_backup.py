"""A hub in one file, and a hub from that file: whole or not at all, and no device takes it for an old one."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command

from edgewright.main import run
from edgewright_agent.delivery.spool import PLAIN, Spool
from edgewright_compiler.keys import init_keys
from edgewright_contracts.birth import Unclean
from edgewright_contracts.errors import EdgewrightError, Refused, RequestError, Unavailable
from edgewright_contracts.package import Package
from edgewright_hub.backup import backup
from edgewright_hub.backup.archive import Manifest, Member, opened
from edgewright_hub.backup.restore import AHEAD_S, JUMP, restore
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry.repository import Repository
from edgewright_hub.rollouts import desired_documents
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.places import NAME, places
from edgewright_hub.storage.store import _config, check, open_engine, revisions
from edgewright_hub.storage.telemetry import open_telemetry
from sim import wire
from sim.disk import SimDisk
from sim.house import House
from sim.postgresql import ASKED, chosen, server

NOW = datetime.now(UTC)
CHANGED = {"desired", "cursors", "audit", "alerts"}  # by a restore itself


def lived(place: Path, packages: dict[str, Package], owner: Path, *, asked: bool = False) -> House:
    """A hub that has an owner, an authority, two devices that run a release, and a third that was told nothing."""
    chosen(place, asked=asked)
    house = House(place, packages)
    house.registry.open(owner / "hub", now=NOW)
    open_authority(place / "ca", now=NOW)
    house.publish_package("1.0.0")
    house.enrol("pi-0", "pi-1")
    house.start("1.0.0", stages=("100%",))
    house.live(["pi-0", "pi-1"], 30, until="done")
    house.enrol("new", fleet="yard")
    (place / "samples" / "pi-0").mkdir(parents=True)
    (place / "samples" / "pi-0" / "0123456789abcdef.npz").write_bytes(b"PK\3\4")
    (place / "admin.token").write_text("secret")
    (place / "hub.json").write_text("{}")
    return house


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    """Which kind of database is used, each test says itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ASKED, raising=False)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> Path:
    place = tmp_path_factory.mktemp("backup")
    init_keys(place / "owner", now=NOW)
    lived(place / "data", packages, place / "owner")
    backup.make(place / "data", place / "hub.tar", now=NOW)
    return place / "hub.tar"


def rows(house: House) -> dict[str, list[tuple[Any, ...]]]:
    """Of both databases, by table."""
    found = {}
    for engine, metadata in ((house.control, control.metadata), (house.telemetry, telemetry.metadata)):
        with engine.connect() as connection:
            for table in metadata.sorted_tables:
                ordered = sa.select(table).order_by(*table.primary_key.columns)
                found[f"{metadata is control.metadata} {table.name}"] = [tuple(r) for r in connection.execute(ordered)]
    return found


@pytest.mark.parametrize(("here", "there"), [(False, False), (False, True), (True, False)])
def test_what_was_known_is_known_again_on_either_kind_of_database(
    tmp_path: Path, owner: Path, packages: dict[str, Package], here: bool, there: bool
) -> None:
    house = lived(tmp_path / "data", packages, owner, asked=here)
    with house.telemetry.begin() as connection:  # the newest row is gone, its number must not come again
        last = connection.execute(sa.select(sa.func.max(telemetry.windows.c.id))).scalar_one()
        connection.execute(telemetry.windows.delete().where(telemetry.windows.c.id == last))
    before = rows(house)
    made = backup.make(tmp_path / "data", tmp_path / "hub.tar", now=NOW)
    assert (tmp_path / "hub.tar").stat().st_mode & 0o777 == 0o600
    assert not {"lock", "hub.json", NAME} & set(made.files), "a restored hub writes to no other's server"
    database = server().url() if there else None
    done = restore(tmp_path / "hub.tar", tmp_path / "again", now=NOW, database=database)
    assert done.counts == made.counts == {"devices": 3, "packages": 1, "rollouts": 1, **_heard(house)}
    assert sorted(place.name for place in tmp_path.iterdir()) == ["again", "data", "hub.tar", "owner"]

    again = House(tmp_path / "again", packages)
    after = rows(again)
    assert {n for n in before if before[n] != after[n]} <= {f"True {name}" for name in CHANGED}
    kept = [name for name in before if name.split()[1] in ("audit", "alerts", "cursors")]
    assert all(row in after[name] for name in kept for row in before[name])
    for engine, metadata, schema in (
        (again.control, control.metadata, "control"),
        (again.telemetry, telemetry.metadata, "telemetry"),
    ):
        check(engine, metadata, schema)  # type: ignore[arg-type]
    again.window("pi-0", "1.0.0", seq=10**6)
    with again.telemetry.connect() as connection:
        assert connection.execute(sa.select(sa.func.max(telemetry.windows.c.id))).scalar_one() == last + 1
    assert (tmp_path / "again" / "samples" / "pi-0" / "0123456789abcdef.npz").read_bytes() == b"PK\3\4"
    for name in ("keys/timestamp.pem", "ca/ca.key", "hub.db" if not there else NAME):
        assert (tmp_path / "again" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "again" / "hub.db").exists() == (not there)


def _heard(house: House) -> dict[str, int]:
    with house.telemetry.connect() as connection:
        d = telemetry.devices.c
        windows, inferences = connection.execute(sa.select(sa.func.sum(d.windows), sa.func.sum(d.inferences))).one()
    return {"windows": int(windows), "inferences": int(inferences)}


def test_everything_that_may_only_rise_has_jumped(archive: Path, tmp_path: Path, packages: dict[str, Package]) -> None:
    was = House(archive.parent / "data", packages)
    restore(archive, tmp_path / "again", now=NOW)
    again = House(tmp_path / "again", packages)
    for device in ("pi-0", "pi-1"):
        old, new = was.wanted(device), again.wanted(device)
        assert old is not None
        assert new == msgspec.structs.replace(old, rev=old.rev + JUMP)
    # A device that was told its first document after the backup holds a revision of which this hub knows nothing.
    again.start("1.0.0", devices=("new",), stages=("100%",))
    again.tick()
    first = again.wanted("new")
    assert first is not None
    assert first.rev == JUMP + 1
    new, old = (Repository(place / "repo", place / "keys") for place in (again.place, was.place))
    assert new.versions("snapshot")[-1] >= max(old.versions("snapshot")[-1] + 1, int(NOW.timestamp()) + AHEAD_S)
    new.verify()
    with again.control.connect() as connection:
        assert desired_documents.floor(connection) == JUMP
        a = control.alerts.c
        told = connection.execute(sa.select(a.text).where(a.kind == "hub")).scalar_one()
    assert "publish, enrol, retire" in told


def test_backups_of_a_hub_at_work_hold_what_their_cursors_have_read(
    tmp_path: Path, owner: Path, packages: dict[str, Package]
) -> None:
    house = lived(tmp_path / "data", packages, owner)
    house.publish_package("2.0.0")
    house.start("2.0.0", stages=("50%", "100%"))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            house.live(["pi-0", "pi-1"], 1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(2):
            backup.make(tmp_path / "data", tmp_path / f"{number}.tar", now=NOW)
    finally:
        stop.set()
        worker.join()
    seen = []
    for number in range(2):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number), now=NOW)
        one = House(tmp_path / str(number), packages)
        with one.control.connect() as ours, one.telemetry.connect() as theirs:
            read = max(ours.execute(sa.select(control.cursors.c.position)).scalars())
            given = theirs.execute(sa.select(sa.func.max(telemetry.windows.c.id))).scalar_one()
            d, w = telemetry.devices.c, telemetry.windows.c
            counted = theirs.execute(sa.select(sa.func.sum(d.inferences))).scalar_one()
            assert counted == theirs.execute(sa.select(sa.func.sum(w.n))).scalar_one(), "one moment"
        assert max(read - JUMP, 0) <= given
        assert read <= max(given, JUMP)
        seen.append(counted)
    assert seen == sorted(seen)


def test_a_rollout_that_was_under_way_ends_on_the_restored_hub(
    tmp_path: Path, owner: Path, packages: dict[str, Package]
) -> None:
    """The hub that is lost had ended it meanwhile."""
    house = lived(tmp_path / "data", packages, owner)
    house.publish_package("2.0.0")
    rollout = house.start("2.0.0", stages=("50%", "100%"), fleet="lab")
    pis = ["pi-0", "pi-1"]
    house.live(pis, 2)
    assert house.conductor.rollout(rollout)["state"] == "running"
    backup.make(tmp_path / "data", tmp_path / "hub.tar", now=NOW)
    house.live(pis, 120, until="done")
    held = {pi: document.rev for pi in pis if (document := house.wanted(pi))}
    restore(tmp_path / "hub.tar", tmp_path / "again", now=NOW)

    again = House(tmp_path / "again", packages, now=house.now, numbers=house.numbers, rng=house.rng)
    with again.telemetry.begin() as connection:
        for pi, rev in held.items():  # as their births say
            d = telemetry.devices
            connection.execute(d.update().where(d.c.device == pi).values(desired_rev=rev, last_seen_ms=again.now))
    again.live(pis, 200, until="done")
    ended = again.conductor.rollout(rollout)
    assert (ended["state"], ended["outcome"]) == ("done", "promoted")
    assert {again.version(pi) for pi in pis} == {"2.0.0"}
    sent = [(pi, document.rev) for pi, document in again.sent]
    assert all(rev > held[pi] for pi, rev in sent)


@pytest.mark.parametrize("gap", [1, 63, 65, 150])
def test_a_device_that_discarded_what_the_lost_hub_had_counted_is_not_held_up(tmp_path: Path, gap: int) -> None:
    """Numbers that were acknowledged after the backup never come again; those that were not do."""
    engines = [open_telemetry(tmp_path / name / "telemetry.db") for name in ("lost", "restored")]
    spool = Spool(SimDisk(), Path("/spool"), new_id=lambda: "5" * 16)
    opened = Unclean(boot_id=wire.BOOT, open_since_mono_ms=0)
    spool.begin(opened)

    def delivered(number: int, *hubs: sa.Engine) -> None:
        for at in range(0, number, 8):
            spool.seal([wire.window()] * min(8, number - at), opened, PLAIN)
            for turn in range(100):
                offers = spool.offer()
                if not offers:
                    break
                messages = [wire.message("cam", o.kind, o.payload, 1_800_000_000_000 + turn) for o in offers]
                answers = [commit(hub, messages, lambda _: "lab") for hub in hubs]
                assert not answers[0][0].renew
                spool.ack(answers[0][0].ack)
            assert not spool.offer()

    delivered(20, *engines)  # then the backup is made
    delivered(gap, engines[0])
    told = spool.told()
    born = wire.birth_bytes("cam", spool=told.id, next_seq=told.next_seq)
    [answer] = commit(engines[1], [wire.message("cam", "birth", born, 1_800_000_000_000)], lambda _: "lab")
    assert not answer.renew
    delivered(70, engines[1])
    with engines[1].connect() as connection:
        assert connection.execute(sa.select(sa.func.sum(telemetry.windows.c.n))).scalar_one() == 900
        assert connection.execute(sa.select(telemetry.spools.c.lost)).scalar_one() == gap, "which doctor tells"
    for engine in engines:
        engine.dispose()


def refused(archive: Path, place: Path, kind: type[EdgewrightError] = RequestError) -> str:
    """What restoring it says; nothing is there then."""
    before = sorted(place.iterdir())
    with pytest.raises(kind) as error:
        restore(archive, place / "again", now=NOW)
    assert sorted(place.iterdir()) == before
    return str(error.value)


def test_one_that_is_cut_off_anywhere_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    dice = random.Random(1)
    ends = [0, 1, 511, 512, 1024, *(dice.randrange(len(whole)) // 512 * 512 for _ in range(8))]
    manifest = whole.rindex(b"manifest-")
    for at in [*ends, *(dice.randrange(len(whole)) for _ in range(8)), manifest, manifest + 600]:
        (tmp_path / "cut.tar").write_bytes(whole[:at])
        assert "expected a whole backup" in refused(tmp_path / "cut.tar", tmp_path)


def test_one_with_a_flipped_byte_is_refused(archive: Path, tmp_path: Path) -> None:
    whole, dice = archive.read_bytes(), random.Random(2)
    with tarfile.open(archive) as tar:
        places = [info.offset_data + dice.randrange(info.size) for info in tar if info.size]
        places += [info.offset + 5 for info in tar]  # in a name
    for at in dice.sample(places, 16):
        (tmp_path / "bad.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert "expected a whole backup" in refused(tmp_path / "bad.tar", tmp_path)


def remade(archive: Path, target: Path, change: Callable[[Manifest], Manifest], *more: tarfile.TarInfo) -> Path:
    """By somebody who knows how: the list of files agrees with what there is."""
    with opened(archive) as whole:
        manifest = change(whole.manifest)
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        for info in old:
            if not info.name.startswith("manifest-"):
                new.addfile(info, old.extractfile(info))
        for info in more:
            info.size = 4 if info.isreg() else 0
            new.addfile(info, io.BytesIO(b"evil"))
            member = Member(4, hashlib.sha256(b"evil").hexdigest())
            manifest = msgspec.structs.replace(manifest, files={**manifest.files, info.name: member})
        body = msgspec.json.encode(manifest)
        info = tarfile.TarInfo(f"manifest-{hashlib.sha256(body).hexdigest()}.json")
        info.size = len(body)
        new.addfile(info, io.BytesIO(body))
    return target


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "repo/../../evil", "./hub.db", "repo//evil", "."])
def test_a_file_outside_of_the_folder_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    said = refused(remade(archive, tmp_path / "x.tar", lambda m: m, tarfile.TarInfo(name)), tmp_path)
    assert "which no backup does" in said


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_is_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("repo/link")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "which no backup does" in refused(remade(archive, tmp_path / "x.tar", lambda m: m, info), tmp_path)


def test_what_a_newer_release_made_is_refused(archive: Path, tmp_path: Path) -> None:
    def newer(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, revisions={**manifest.revisions, "telemetry": "telemetry_9999"})

    said = refused(remade(archive, tmp_path / "schema.tar", newer), tmp_path)
    assert "telemetry_9999" in said
    assert "newer release" in said
    later = remade(archive, tmp_path / "format.tar", lambda m: msgspec.structs.replace(m, format=2))
    assert "newer release (format 2)" in refused(later, tmp_path)


def test_another_file_an_absent_one_and_a_clock_of_the_past_are_named(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 4000)
    assert "another kind of file" in refused(tmp_path / "photo.jpg", tmp_path)
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "a.py")
    assert "its end is missing" in refused(tmp_path / "other.tar", tmp_path)
    assert "there is none" in refused(tmp_path / "absent.tar", tmp_path)
    with pytest.raises(Refused, match=r"clock .* set it"):
        restore(archive, tmp_path / "again", now=NOW - timedelta(days=1))
    assert not (tmp_path / "again").exists()


def test_an_older_schema_is_upgraded_and_said_to_be(tmp_path: Path, owner: Path, packages: dict[str, Package]) -> None:
    house = lived(tmp_path / "data", packages, owner)
    house.control.dispose()
    before = revisions("control")[1]
    (tmp_path / "data" / "hub.db").unlink()
    engine = open_engine(tmp_path / "data" / "hub.db", schema="control")
    with engine.begin() as connection:
        command.upgrade(_config(connection, control.metadata, "control"), before)
    engine.dispose()
    backup.make(tmp_path / "data", tmp_path / "old.tar", now=NOW)
    done = restore(tmp_path / "old.tar", tmp_path / "again", now=NOW)
    assert done.upgraded == {"control": before}
    again = House(tmp_path / "again", packages)
    check(again.control, control.metadata, "control")


def test_a_folder_that_holds_something_and_a_file_that_is_there_are_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(RequestError, match="absent or empty"):
        restore(archive, tmp_path / "used", now=NOW)
    assert [place.name for place in (tmp_path / "used").iterdir()] == ["file"]
    data = archive.parent / "data"
    with pytest.raises(RequestError, match="never written over"):
        backup.make(data, tmp_path / "used" / "file", now=NOW)
    with pytest.raises(RequestError, match="outside of"):
        backup.make(data, data / "hub.tar", now=NOW)
    assert (tmp_path / "used" / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    assert restore(archive, tmp_path / "empty", now=NOW).targets == 1
    assert (tmp_path / "empty").stat().st_ino == inode, "it may be a volume of its own"
    assert not [place.name for place in (tmp_path / "empty").iterdir() if place.name.endswith(".part")]
    Repository(tmp_path / "empty" / "repo", tmp_path / "empty" / "keys").verify()


def test_a_fresh_volume_takes_a_hub_and_what_fsck_keeps_there_is_none_of_its_files(
    archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    assert restore(archive, tmp_path / "volume", now=NOW).targets == 1
    (tmp_path / "volume" / "lost+found" / "#12").write_bytes(b"of an inode")
    assert not [name for name in backup.make(tmp_path / "volume", tmp_path / "b.tar", now=NOW).files if "#12" in name]


def telemetry_of(place: Path) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{places(place).telemetry}", poolclass=sa.NullPool)


def test_a_database_of_another_hub_is_left_alone_and_one_that_fails_halfway_is_empty_again(
    archive: Path, tmp_path: Path, database_url: str
) -> None:
    with pytest.raises(RequestError, match="belongs to a hub"):
        restore(archive, tmp_path / "again", now=NOW, database=database_url)
    with telemetry_of(archive.parent / "data").begin() as connection:  # no server takes this, so the second part fails
        row = {"arrived_ms": 1, "topic": "a", "reason": "\0", "body": b"", "device": ""}
        connection.execute(telemetry.dead_letters.insert().values(**row))
    backup.make(archive.parent / "data", tmp_path / "nul.tar", now=NOW)
    with telemetry_of(archive.parent / "data").begin() as connection:
        connection.execute(telemetry.dead_letters.delete())
    url = server().url()
    with pytest.raises(Unavailable, match="NUL"):
        restore(tmp_path / "nul.tar", tmp_path / "again", now=NOW, database=url)
    assert restore(archive, tmp_path / "again", now=NOW, database=url).counts["devices"] == 3
    with pytest.raises(Unavailable, match="cannot be reached"):
        restore(archive, tmp_path / "else", now=NOW, database="postgresql://hub@/none?host=/nowhere")
    assert not (tmp_path / "else").exists()


@pytest.mark.process
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_a_disk_that_is_full_leaves_nothing_and_is_one_message(archive: Path, tmp_path: Path, verb: str) -> None:
    words = {
        "backup": ["backup", str(tmp_path / "hub.tar"), "--data", str(archive.parent / "data")],
        "restore": ["restore", str(archive), "--data", str(tmp_path / "again")],
    }[verb]
    limit = 60_000
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from edgewright.main import main; main()"
    )
    command = [sys.executable, "-c", code, "hub", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_commands_say_what_came(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = archive.parent / "data"
    assert run(["hub", "backup", str(tmp_path / "b.tar"), "--data", str(data), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["counts"]["devices"] == 3
    assert made["bytes"] == (tmp_path / "b.tar").stat().st_size
    assert run(["hub", "restore", str(tmp_path / "b.tar"), "--data", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "3 devices, 1 packages, 1 rollouts" in said
    assert f"\n  edgewright hub serve --data {tmp_path / 'again'} --name NAME\n" in said
    assert run(["hub", "doctor", "--data", str(tmp_path / "again"), "--json"]) == 1
    found = {one["check"]: one["said"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["process"] == "the hub does not run: start it with `edgewright hub serve`"
    assert run(["hub", "restore", str(tmp_path / "b.tar"), "--data", str(tmp_path / "again"), "--json"]) == 2
    assert run(["hub", "backup", str(tmp_path / "c.tar"), "--data", str(tmp_path / "none")]) == 2
