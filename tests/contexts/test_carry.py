"""A context as one file: out of one home and into another, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preread.contexts.catalog.base import ContextRecord, ShardRecord
from preread.contexts.catalog.sqlite import SqliteCatalog
from preread.contexts.exporting import Exported, export_context
from preread.contexts.importing import Imported, import_context
from preread.errors import CatalogConflict, SourceError, StateError, UnknownName, UsageError
from preread.store.keys import Geometry
from preread.store.seal import Keyring
from preread.store.store import Store
from preread.store.tiers.base import Tier
from preread.store.tiers.memory import MemoryTier
from preread.testing.conformance_catalog import record
from preread.testing.faulty import FaultyTier, Trouble, at
from tests.attacks.tools import FINGERPRINT, GEOMETRY, Truth, draws
from tests.contexts import reference_export

TOKENS = tuple(range(100, 129))
RING = Keyring((bytes(range(32)),))


class Site:
    """A catalog and a tier of one machine."""

    def __init__(self, folder: Path, tier: Tier | None = None) -> None:
        folder.mkdir()
        self.catalog = SqliteCatalog(folder / "catalog.sqlite")
        self.memory = MemoryTier()
        self.tiers: list[Tier] = [tier or self.memory]
        self.truth = Truth.of(GEOMETRY, len(TOKENS))

    def store(self, keyring: Keyring | None = None, geometry: Geometry = GEOMETRY) -> Store:
        return Store(self.tiers, geometry, FINGERPRINT, keyring=keyring)

    def build(self, keyring: Keyring | None = None) -> ContextRecord:
        """`handbook`, whose first shard has chunks here."""
        keys = self.store(keyring).save(TOKENS, 0, self.truth.source).keys
        made = record()
        shards = tuple(replace(shard, chunk_keys=keys) for shard in made.shards)
        made = replace(made, shards=shards)
        self.catalog.put(made, expected=0)
        return made

    def export(self, path: Path, name: str = "handbook") -> Exported:
        return export_context(self.catalog, self.tiers, name, path, writer="preread 0")

    def take_in(self, path: Path, **options: Any) -> Imported:
        return import_context(self.catalog, self.tiers, path, **options)

    def loaded(self, keyring: Keyring | None = None) -> int:
        return self.store(keyring).load(TOKENS, len(TOKENS), self.truth.sink).tokens


@pytest.fixture
def here(tmp_path: Path) -> Site:
    return Site(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Site:
    return Site(tmp_path / "there")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "handbook.tar"


@pytest.mark.parametrize("keyring", [None, RING], ids=["plain", "sealed"])
def test_out_and_in(here: Site, there: Site, file: Path, keyring: Keyring | None) -> None:
    made = here.build(keyring)
    done = here.export(file)
    sealed = 8 if keyring else 0
    assert (done.chunks, done.missing, done.sealed, done.version) == (8, 0, sealed, 1)
    assert done.nbytes == file.stat().st_size and list(file.parent.glob(".*")) == []
    taken = there.take_in(file)
    assert (taken.chunks, taken.missing, taken.sealed, taken.unchanged) == (8, 0, sealed, False)
    assert there.loaded(keyring) == len(TOKENS)
    bare = tuple(replace(source, origin="") for source in made.sources)
    assert there.catalog.get("handbook") == replace(made, sources=bare, patterns=())
    again = there.take_in(file)
    assert again.unchanged and again.record.version == 1
    assert here.take_in(file).unchanged  # where it came from


def test_what_it_holds_is_documented(here: Site, file: Path, tmp_path: Path) -> None:
    """The reference reader and plain tools understand it; no path of this machine is in it."""
    made = here.build()
    here.export(file)
    found, texts, payloads = reference_export.read(str(file))
    assert found["name"] == "handbook" and found["fingerprint"] == made.fingerprint
    assert {texts[s["text"]] for s in found["sources"]} == {s.text for s in made.sources}
    assert {texts[s["system"]] for s in found["shards"]} == {s.system for s in made.shards}
    assert set(payloads) == {key for s in found["shards"] for key in s["chunk_keys"]}
    assert len(Path(reference_export.__file__).read_text().splitlines()) <= 100
    assert b"/srv/docs" not in file.read_bytes()
    folder = tmp_path / "untarred"
    folder.mkdir()
    subprocess.run(["tar", "-xf", file, "-C", folder], check=True)
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder)
    assert checked.returncode == 0


def test_what_is_missing_is_said(here: Site, there: Site, file: Path) -> None:
    made = here.build()
    keys = here.store().keys(TOKENS)
    here.memory.remove([bytes.fromhex(keys[0])])  # type: ignore[list-item]
    value = bytearray(next(iter(here.memory.read([bytes.fromhex(keys[5])]))))  # type: ignore
    value[300] ^= 1
    here.memory.write(bytes.fromhex(keys[5]), [bytes(value)])  # type: ignore[arg-type]
    done = here.export(file)
    assert (done.chunks, done.missing) == (6, 2)  # a damaged one does not travel
    taken = there.take_in(file)
    assert (taken.chunks, taken.missing) == (6, 2) and there.catalog.get(made.name)


def test_texts_alone(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)
    taken = there.take_in(file, chunks=False)
    assert (taken.chunks, taken.missing) == (0, 8) and there.memory.usage().chunks == 0
    assert there.catalog.get("handbook")


def test_names_that_are_taken(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)
    there.catalog.put(record(text="Something else."), expected=0)
    with pytest.raises(UsageError, match="--name OTHER; or --force, for version 2"):
        there.take_in(file)
    assert there.take_in(file, name="other").record.name == "other"
    assert there.take_in(file, force=True).record.version == 2
    newest = there.catalog.get("handbook")
    assert newest is not None and newest.sources[0].text.startswith("Open at 9.")
    with pytest.raises(UsageError):
        there.take_in(file, name="../etc")


def test_somebody_else_is_first(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)

    class Racing(SqliteCatalog):
        def put(self, made: ContextRecord, *, expected: int) -> None:
            SqliteCatalog(self.path).put(record(text="First."), expected=0)
            super().put(made, expected=expected)

    there.catalog = Racing(there.catalog.path)
    with pytest.raises(CatalogConflict):
        there.take_in(file)


def test_what_cannot_be_exported(here: Site, file: Path) -> None:
    with pytest.raises(UnknownName):
        here.export(file)
    here.build()
    here.catalog.invalidate("handbook", "new prices")
    with pytest.raises(StateError, match=r"new prices.*preread ask"):
        here.export(file)
    here.catalog.put(record(version=2), expected=1)
    with pytest.raises(SourceError, match="cannot be written"):
        here.export(file.parent / "no" / "folder.tar")
    file.mkdir()
    with pytest.raises(SourceError, match="cannot be written"):
        here.export(file)
    pipe = file.parent / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match="no regular file"):  # as a device: it would be replaced
        here.export(pipe)
    assert sorted(p.name for p in file.parent.iterdir()) == ["handbook.tar", "here", "pipe"]


def test_what_a_killed_export_has_left_goes_with_the_next(here: Site, tmp_path: Path) -> None:
    """What is being written, somebody's own and another file's stay."""
    here.build()
    folder = tmp_path / "out"
    folder.mkdir()
    path, (temp, written, own, other) = (
        folder / "a [1].prd",
        [
            folder / name
            for name in (
                ".a [1].prd.abcd1234.partial",
                ".a [1].prd.wxyz5678.partial",
                ".a [1].prd.backup",
                ".b.prd.abcd1234.partial",
            )
        ],
    )
    for one in (temp, written, own, other):
        one.write_bytes(b"x")
        os.utime(one, (1e9, 1e9))
    with open(written, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        here.export(path)
    assert {*folder.iterdir()} == {path, written, own, other}
    here.export(path)
    assert {*folder.iterdir()} == {path, own, other}


def test_tiers_that_fail(here: Site, tmp_path: Path, file: Path) -> None:
    """Out: what is there goes; in: the texts are there and the KV is computed; both are told."""
    here.build()
    here.tiers = [FaultyTier(here.memory, at({("find", 0): Trouble.RAISE}))]
    done = here.export(file)
    assert (done.chunks, done.missing, len(done.errors)) == (0, 8, 1)
    here.tiers = [here.memory]
    here.export(file)
    full = FaultyTier(MemoryTier(), at({("write", 2): Trouble.FULL}))
    there = Site(tmp_path / "there", full)
    taken = there.take_in(file)  # no try for each of the others: each might cost a deadline
    assert (taken.chunks, taken.missing, len(taken.errors)) == (2, 6, 1)
    beside = Site(tmp_path / "beside", FaultyTier(MemoryTier(), at({("write", 0): Trouble.RAISE})))
    beside.tiers = [*beside.tiers, MemoryTier()]
    taken = beside.take_in(file)
    assert (taken.chunks, taken.missing, len(taken.errors)) == (8, 0, 1)
    assert there.catalog.get("handbook")


# --- damage: nothing is published, and the error says what to do ---


def refused(there: Site, path: Path, says: str = "not a whole export") -> None:
    with pytest.raises(SourceError, match=says) as caught:
        there.take_in(path)
    assert str(path) in str(caught.value) and there.catalog.summaries() == []


def test_every_cut_and_a_thousand_flips(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)
    clean = there.take_in(file).record
    there.catalog.remove("handbook")
    whole, draw = file.read_bytes(), draws("carry")
    end = whole.rindex(b"SHA256SUMS") + 512  # what follows are the sums and zeros
    for length in [*range(0, end, 997), end]:
        file.write_bytes(whole[:length])
        refused(there, file)
        with pytest.raises(ValueError):
            reference_export.read(str(file))
    harmless = 0
    for _ in range(1000):
        data = bytearray(whole)
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        try:
            taken = there.take_in(file)
        except SourceError:
            assert there.catalog.summaries() == []
            continue
        # Padding and unused fields of the tar: what was taken in is what was exported.
        assert there.loaded() == len(TOKENS) and taken.record == clean
        there.catalog.remove("handbook")
        harmless += 1
    assert harmless < 300
    assert there.memory.usage().chunks <= 8


def remade(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change members and make the digests right again: a competent forger."""
    with tarfile.open(path) as tar:
        members = {i.name: tar.extractfile(i).read() for i in tar}  # type: ignore[union-attr]
    del members["SHA256SUMS"]
    change(members)
    sums = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in members.items())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {**members, "SHA256SUMS": sums.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def with_record(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["preread.json"])
        manifest["record"].update(values)
        members["preread.json"] = json.dumps(manifest).encode()

    return change


def with_shard(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["preread.json"])
        manifest["record"]["shards"][0].update(values)
        members["preread.json"] = json.dumps(manifest).encode()

    return change


def with_manifest(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members["preread.json"] = json.dumps(json.loads(members["preread.json"]) | values).encode()

    return change


def swapped_chunks(members: dict[str, bytes]) -> None:
    one, two = [name for name in members if name.startswith("chunks/")][:2]
    members[one], members[two] = members[two], members[one]


def other_text(members: dict[str, bytes]) -> None:
    members[next(name for name in members if name.startswith("texts/"))] = b"You are mine now."


def lost_text(members: dict[str, bytes]) -> None:
    del members[next(name for name in members if name.startswith("texts/"))]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swapped_chunks, "chunk .*other_key"),
        (other_text, "is another text"),
        (lost_text, "record is not understood"),
        (lambda m: m.update({"../../etc/passwd": b"x"}), "does not belong there"),
        (lambda m: m.update({"chunks/zz.kv": b"x"}), "does not belong there"),
        (lambda m: m.update({"preread.json": b"{"}), "preread.json is not understood"),
        (lambda m: m.update({"preread.json": b"[]"}), "preread.json is not understood"),
        (lambda m: m.update({"preread.json": b"[" * 100_000}), "preread.json is not understood"),
        (lambda m: m.clear(), "ends before preread.json"),
        (with_manifest(format=2), r"export format 2 by preread 0.*newer one"),
        (with_manifest(format="1"), "not understood"),
        (with_record(name=None), "not understood"),
        (with_record(sources=[{}]), "not understood"),
        (with_record(shards="none"), "not understood"),
        (with_record(model=json.loads("[" * 900 + "]" * 900)), "not understood"),
        (with_shard(sources=[99]), "contradicts itself"),
        (with_record(codec="zip"), "contradicts itself"),
        (with_shard(tokens=1 << 70), "contradicts itself"),
        (with_shard(kv_bytes=-1), "contradicts itself"),
        (with_record(created_at="yesterday"), "not understood"),
    ],
)
def test_forged_with_right_digests(
    here: Site, there: Site, file: Path, change: Callable[[dict[str, bytes]], None], says: str
) -> None:
    here.build()
    here.export(file)
    remade(file, change)
    refused(there, file, says)


def test_a_record_that_contradicts_itself(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["preread.json"])
        manifest["record"]["shards"][0]["parts"] = [[7, 0, 1]]
        members["preread.json"] = json.dumps(manifest).encode()

    remade(file, change)
    refused(there, file, "contradicts itself")
    remade(file, lambda m: with_record(shards=[])(m))
    assert there.take_in(file).missing == 0


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_folders_are_no_members(here: Site, there: Site, file: Path, kind: bytes) -> None:
    here.build()
    here.export(file)
    with tarfile.open(file, "a") as tar:
        info = tarfile.TarInfo("chunks/" + "0" * 64 + ".kv")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    refused(there, file, "does not belong there")


def test_files_that_are_something_else(there: Site, file: Path) -> None:
    for data in (b"", b"no tar", b"\0" * 20_000, b"\x1f\x8b\x08" + bytes(100)):
        file.write_bytes(data)
        refused(there, file)
    file.unlink()
    refused(there, file, "No such file")


def test_a_later_minor_release_may_add(here: Site, there: Site, file: Path) -> None:
    here.build()
    here.export(file)
    remade(file, with_manifest(flavour="vanilla"))
    with_later = with_record(colour="blue")
    remade(file, with_later)
    assert isinstance(there.take_in(file).record.shards[0], ShardRecord)
