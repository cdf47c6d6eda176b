"""Every combination of metadata and backing: what is opened, what is made, what is refused."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from repl.core.lineage import Generation, Origin
from repl.core.outbox import Commit, MapName, MapPage
from repl.errors import PermissionRefused, Refused, ReplError
from repl.store import fallocate, metafile
from repl.store import open as opening
from repl.store.backing import TAG_ATTRIBUTE, Backing
from repl.store.metadata import Metadata
from repl.store.open import Store, adopt_store, open_store

SIZE_BYTES = 8 << 20
GENERATION = Generation(1, 5, 1, (1,), True, Origin.ADOPTED, 0)


@dataclass
class Site:
    """One node's folders, and what is open in them."""

    root: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))
    stores: list[Store] = field(default_factory=list)
    size_bytes: int = SIZE_BYTES
    peers: tuple[str, ...] = ("beta",)

    @property
    def state_dir(self) -> str:
        return str(self.root / "state")

    @property
    def meta(self) -> Path:
        return self.root / "state" / "volumes" / "r0.meta"

    @property
    def image(self) -> Path:
        return self.root / "disk" / "r0.img"

    def open(self) -> Store:
        return self._kept(
            open_store(self.state_dir, "r0", self.size_bytes, str(self.image), self.peers, self._id)
        )

    def adopt(self, *, discard: bool) -> Store:
        return self._kept(
            adopt_store(
                self.state_dir,
                "r0",
                self.size_bytes,
                str(self.image),
                self.peers,
                self._id,
                discard=discard,
            )
        )

    def _id(self) -> int:
        return next(self.numbers)

    def _kept(self, store: Store) -> Store:
        self.stores.append(store)
        return store

    def close(self) -> None:
        while self.stores:
            self.stores.pop().close()

    def refusal(self, call: Callable[[], Store]) -> ReplError:
        """The refusal of a call that may leave nothing behind: no file, no lock, no descriptor."""
        files, descriptors = self.files(), len(os.listdir("/proc/self/fd"))
        with pytest.raises(ReplError) as caught:
            call()
        assert self.files() == files
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert caught.value.next_step
        return caught.value

    def files(self) -> dict[str, int]:
        found = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path): path.stat().st_size for path in found}

    def use(self) -> None:
        """Open, make a first generation as the core does, write something, and close."""
        store = self.open()
        facts = replace(store.facts, lineage=(GENERATION,), known_zeroes=False)
        store.metadata.carry_out(store.metadata.prepare(Commit(1, facts)))
        store.backing.pwritev([b"data"], 4096)
        store.backing.sync()
        self.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    (tmp_path / "state").mkdir()
    made.image.parent.mkdir()
    yield made
    made.close()


def test_a_new_volume_gets_metadata_and_a_sparse_backing(site: Site) -> None:
    store = site.open()
    assert store.facts.fresh
    assert store.facts.known_zeroes
    assert [peer.name for peer in store.facts.peers] == ["beta"]
    assert store.reports == []
    status = site.image.stat()
    assert (status.st_size, status.st_blocks) == (SIZE_BYTES, 0)
    assert stat.S_IMODE(site.meta.stat().st_mode) == 0o600
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert sorted(os.listdir(site.meta.parent)) == ["r0.meta"]


def test_a_closed_volume_opens_again_as_it_was(site: Site) -> None:
    node_id = site.open().facts.node_id
    site.close()
    site.use()
    store = site.open()
    assert store.facts.node_id == node_id
    assert store.facts.lineage == (GENERATION,)
    assert not store.facts.known_zeroes
    buffer = bytearray(4)
    store.backing.preadv([buffer], 4096)
    assert buffer == b"data"


def test_a_second_opening_is_refused_while_the_first_lasts(site: Site) -> None:
    site.open()
    assert site.refusal(site.open).code == "BACKING_IN_USE"
    assert site.refusal(lambda: site.adopt(discard=True)).code == "BACKING_IN_USE"


def test_metadata_without_its_backing_is_refused_and_nothing_is_made(site: Site) -> None:
    site.use()
    site.image.unlink()
    assert site.refusal(site.open).code == "BACKING_MISSING"
    site.image.parent.rmdir()
    assert site.refusal(site.open).code == "BACKING_MISSING"


@pytest.mark.parametrize("size_bytes", [0, 4096, SIZE_BYTES - 1, SIZE_BYTES + 1])
def test_a_backing_of_another_size_is_refused(site: Site, size_bytes: int) -> None:
    site.use()
    os.truncate(site.image, size_bytes)
    assert site.refusal(site.open).code == "BACKING_SIZE"


def test_a_file_made_anew_in_the_backings_place_is_refused(site: Site) -> None:
    site.use()
    site.image.unlink()
    site.image.touch()
    os.truncate(site.image, SIZE_BYTES)
    assert site.refusal(site.open).code == "BACKING_FOREIGN"


def test_another_volumes_backing_is_refused(site: Site) -> None:
    site.use()
    os.setxattr(site.image, TAG_ATTRIBUTE, b"feed")
    refusal = site.refusal(site.open)
    assert refusal.code == "BACKING_FOREIGN"
    assert "feed" in refusal.why


def test_a_backing_moved_with_its_attribute_is_recognised_and_remembered(site: Site) -> None:
    site.use()
    tag = os.getxattr(site.image, TAG_ATTRIBUTE)
    moved = site.image.with_name("moved")
    moved.write_bytes(site.image.read_bytes())
    os.setxattr(moved, TAG_ATTRIBUTE, tag)
    os.replace(moved, site.image)
    store = site.open()
    assert store.metadata.stamp.inode == site.image.stat().st_ino
    assert store.metadata.stamp.tag == tag.decode()


@pytest.mark.parametrize("content", ["data", "hole", "empty"])
def test_a_backing_without_metadata_is_unknown_whatever_it_holds(site: Site, content: str) -> None:
    site.image.write_bytes(b"precious" if content == "data" else b"")
    if content != "empty":
        os.truncate(site.image, SIZE_BYTES)
    refusal = site.refusal(site.open)
    assert refusal.code == "BACKING_UNKNOWN"
    assert "replctl volume adopt r0" in refusal.next_step
    assert "--discard" in refusal.next_step


def test_another_size_in_the_configuration_is_refused(site: Site) -> None:
    site.use()
    site.size_bytes *= 2
    assert site.refusal(site.open).code == "METADATA_MISMATCH"


def test_a_missing_folder_of_a_new_backing_is_named(site: Site) -> None:
    site.image.parent.rmdir()
    refusal = site.refusal(site.open)
    assert refusal.code == "BACKING_UNREADABLE"
    assert f"mkdir -p {site.image.parent}" in refusal.next_step


def test_a_folder_without_permission_leaves_nothing_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionRefused):
        site.open()
    assert site.files() == {}


def test_a_size_that_the_filesystem_refuses_leaves_nothing_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Backing, size_bytes: int) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(Backing, "set_size", refuse)
    with pytest.raises(ReplError, match="cannot be made") as caught:
        site.open()
    assert caught.value.code == "BACKING_UNREADABLE"
    assert site.files() == {}


def test_a_full_filesystem_is_noticed_when_the_metadata_is_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fallocate, "reserve", full)
    with pytest.raises(ReplError, match="No space left"):
        site.open()
    assert site.files() == {}


def test_corrupt_metadata_is_refused_and_can_be_discarded(site: Site) -> None:
    site.use()
    damaged = bytearray(site.meta.read_bytes())
    damaged[: 192 << 10] = bytes(192 << 10)
    site.meta.write_bytes(damaged)
    assert site.refusal(site.open).code == "METADATA_CORRUPT"
    assert site.adopt(discard=True).facts.fresh


def test_truncated_metadata_is_refused(site: Site) -> None:
    site.use()
    os.truncate(site.meta, site.meta.stat().st_size - 4096)
    refusal = site.refusal(site.open)
    assert refusal.code == "METADATA_CORRUPT"
    assert "cut short" in refusal.why


def test_a_new_peer_gets_a_record_and_a_former_one_keeps_its_own(site: Site) -> None:
    site.use()
    site.peers = ("gamma",)
    store = site.open()
    assert [peer.name for peer in store.facts.peers] == ["beta", "gamma"]
    assert set(store.maps.dirty) == {"beta", "gamma"}
    bits = b"\x01" + bytes(4031)
    page = MapPage(MapName.DIRTY, "gamma", 0, bits)
    store.metadata.carry_out(store.metadata.prepare(Commit(1, store.facts, [page])))
    site.close()
    store = site.open()
    assert [peer.name for peer in store.facts.peers] == ["beta", "gamma"]
    assert store.maps.dirty["gamma"].count == 1


def test_a_fifth_peer_ever_is_refused(site: Site) -> None:
    site.peers = ("a", "b", "c", "d")
    site.open()
    site.close()
    site.peers = ("e",)
    assert site.refusal(site.open).code == "METADATA_MISMATCH"


# A crash while the volume is being made.


class Crash(BaseException):
    """The process ends here."""


STEPS = ["fill", "create", "write_tag", "set_size", "finish"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_making_that_was_interrupted_is_finished_by_the_next_opening(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    owner, name = {
        "fill": (opening, "_fill"),
        "create": (Backing, "create"),
        "write_tag": (Backing, "write_tag"),
        "set_size": (Backing, "set_size"),
        "finish": (Metadata, "carry_out"),
    }[step]
    real = getattr(owner, name)

    def crash(*args: object) -> None:
        if moment == "after":
            result = real(*args)
            if isinstance(result, Backing):
                result.close()
        raise Crash

    monkeypatch.setattr(owner, name, crash)
    with pytest.raises(Crash):
        site.open()
    monkeypatch.undo()
    store = site.open()
    assert store.facts.known_zeroes
    assert site.image.stat().st_size == SIZE_BYTES
    assert not store.metadata.stamp.creating
    site.close()
    site.image.unlink()
    assert site.refusal(site.open).code == "BACKING_MISSING"


def test_a_foreign_file_that_turned_up_during_the_making_is_not_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: str, name: str) -> Backing:
        raise Crash

    monkeypatch.setattr(Backing, "create", crash)
    with pytest.raises(Crash):
        site.open()
    monkeypatch.undo()
    site.image.write_bytes(b"precious" * (SIZE_BYTES // 8))
    assert site.refusal(site.open).code == "BACKING_UNKNOWN"
    assert site.image.read_bytes()[:8] == b"precious"


# Adoption.


def test_an_unknown_backing_is_adopted_with_its_data(site: Site) -> None:
    site.image.write_bytes(b"precious" * (SIZE_BYTES // 8))
    store = site.adopt(discard=False)
    assert store.facts.fresh
    assert not store.facts.known_zeroes
    site.close()
    assert site.image.read_bytes()[:8] == b"precious"
    site.open()


def test_adoption_needs_a_backing_of_the_right_size(site: Site) -> None:
    adopt, discard = partial(site.adopt, discard=False), partial(site.adopt, discard=True)
    assert site.refusal(adopt).code == "BACKING_MISSING"
    site.image.write_bytes(b"x")
    assert site.refusal(adopt).code == "BACKING_SIZE"
    assert site.refusal(discard).code == "BACKING_SIZE"


def test_adopting_a_volume_that_has_data_is_refused(site: Site) -> None:
    site.use()
    assert site.refusal(lambda: site.adopt(discard=False)).code == "ADOPT_NOT_NEEDED"


def test_adopting_a_fresh_volume_opens_it(site: Site) -> None:
    node_id = site.open().facts.node_id
    site.close()
    assert site.adopt(discard=False).facts.node_id == node_id


def test_discarding_retires_the_metadata_and_makes_a_new_node_id(site: Site) -> None:
    site.use()
    old = site.meta.read_bytes()
    node_ids = set()
    for _ in range(2):
        store = site.adopt(discard=True)
        assert store.facts.fresh
        assert not store.facts.known_zeroes
        node_ids.add(store.facts.node_id)
        site.close()
    assert len(node_ids) == 2
    assert site.meta.with_name("r0.meta.retired-1").read_bytes() == old
    assert sorted(os.listdir(site.meta.parent)) == [
        "r0.meta",
        "r0.meta.retired-1",
        "r0.meta.retired-2",
    ]


def test_a_new_disk_under_old_metadata_is_made_by_discarding(site: Site) -> None:
    site.use()
    site.image.unlink()
    store = site.adopt(discard=True)
    assert store.facts.fresh
    assert not store.facts.known_zeroes
    assert site.image.stat().st_size == SIZE_BYTES


def test_a_foreign_backing_can_be_discarded(site: Site) -> None:
    site.use()
    site.image.unlink()
    site.image.write_bytes(b"z" * SIZE_BYTES)
    site.adopt(discard=True)
    site.close()
    assert site.open().facts.fresh


# The metadata file itself.


def test_of_two_processes_that_make_the_metadata_at_once_one_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "r0.meta")

    def race(file: metafile.DiskMetadataFile) -> None:
        with pytest.raises(Refused) as caught:
            metafile.create_locked(path, "r0", 4096, 4096, lambda file: None)
        assert caught.value.code == "BACKING_IN_USE"

    file = metafile.create_locked(path, "r0", 4096, 4096, race)
    with pytest.raises(Refused):
        metafile.create_locked(path, "r0", 4096, 4096, lambda file: None)
    file.close()
    assert os.listdir(tmp_path) == ["r0.meta"]


def test_what_a_killed_process_left_half_made_is_made_anew(site: Site) -> None:
    site.meta.parent.mkdir()
    site.meta.with_name("r0.meta.new").write_bytes(b"rubbish" * 100_000)
    assert site.open().reports == []
    assert os.listdir(site.meta.parent) == ["r0.meta"]


def test_a_failed_metadata_sync_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "r0.meta")
    file = metafile.create_locked(path, "r0", 4096, 4096, lambda file: None)

    def fail(fd: int) -> None:
        raise OSError(5, "the disk said no")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="said no"):
        file.sync()
    monkeypatch.undo()
    with pytest.raises(OSError, match="earlier sync"):
        file.sync()
    file.close()
