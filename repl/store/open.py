"""Opening a volume's store: which combinations of metadata and backing may be used, made, or not.

Owns the rules of design §6 about what is there and what is missing. The one that matters most: a
backing is made only for a volume that has no metadata or whose making was interrupted, because an
empty file in the place of a filesystem that is not mounted looks like a good copy. Nothing here is
retried and nothing is overwritten; every refusal says what to run.

A new volume is made in this order, so that a crash at any point is finished by the next opening
without a person: metadata that says `creating` and names the tag the file will carry; the file,
tagged while it is still empty, then given its size; the metadata with the finished stamp.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.outbox import Commit
from repl.store import metafile, refusals
from repl.store.backing import Backing
from repl.store.format import DIRTY_ID, PEER_SLOTS, Layout
from repl.store.metadata import OPENING_COMMIT, Metadata
from repl.store.stamp import BackingKind, Stamp, difference

RandomId = Callable[[], int]


@dataclass(slots=True)
class Store:
    """An open volume: both files are locked until `close`."""

    facts: Facts
    maps: Maps
    metadata: Metadata
    backing: Backing
    #: Sentences about damage found in the metadata and about what could not be checked.
    reports: list[str]
    _file: metafile.DiskMetadataFile = field(repr=False)

    def close(self) -> None:
        """Close both files; no thread may be using them. A clean close is a commit before this."""
        self.backing.close()
        self._file.close()


@dataclass(frozen=True, slots=True)
class _Request:
    """What an opening was asked for."""

    state_dir: str
    name: str
    size_bytes: int
    backing_path: str
    peer_names: tuple[str, ...]
    random_id: RandomId

    @property
    def metadata_path(self) -> str:
        return metafile.metadata_path(self.state_dir, self.name)


def open_store(
    state_dir: str,
    name: str,
    size_bytes: int,
    backing_path: str,
    peer_names: tuple[str, ...],
    random_id: RandomId,
) -> Store:
    """Open the volume, or make it if neither its metadata nor its backing exists.

    `random_id` gives random numbers from 1 to 2**63-1. Raises Refused, PermissionRefused and
    ReplError with the codes BACKING_*, METADATA_* and PERMISSION.
    """
    request = _Request(state_dir, name, size_bytes, backing_path, tuple(peer_names), random_id)
    _check_peer_count(name, request.peer_names)
    with _explained(request), contextlib.ExitStack() as undo:
        metafile.make_volumes_dir(state_dir)
        file = metafile.open_locked(request.metadata_path, name)
        if file is None:
            if os.path.lexists(backing_path):
                # What is no backing at all is not offered for adoption.
                Backing.open(backing_path, name).close()
                raise refusals.unknown_backing(name, backing_path)
            file = _create_metadata(request, _creating_stamp(request), known_zeroes=True)
        undo.callback(file.close)
        store = _open_with(request, file, undo)
        undo.pop_all()
        return store


def adopt_store(
    state_dir: str,
    name: str,
    size_bytes: int,
    backing_path: str,
    peer_names: tuple[str, ...],
    random_id: RandomId,
    *,
    discard: bool,
) -> Store:
    """Carry out `volume adopt`: give an existing backing new metadata, and open it.

    With `discard` the copy becomes fresh and will be overwritten; metadata that exists is renamed
    to NAME.meta.retired-<n>, and a backing that is absent (a new filesystem in the old one's place)
    is made. Without it the volume must have no metadata, or hold no generation yet; the caller
    makes the first generation. The volume must not be open. Raises as `open_store`, and
    ADOPT_NOT_NEEDED.
    """
    request = _Request(state_dir, name, size_bytes, backing_path, tuple(peer_names), random_id)
    _check_peer_count(name, request.peer_names)
    with _explained(request), contextlib.ExitStack() as undo:
        metafile.make_volumes_dir(state_dir)
        file = metafile.open_locked(request.metadata_path, name)
        if file is not None:
            undo.callback(file.close)
            if not discard:
                store = _open_with(request, file, undo)
                if not store.facts.fresh:
                    raise refusals.adopt_not_needed(name)
                undo.pop_all()
                return store
        if not os.path.lexists(backing_path):
            if not discard:
                raise refusals.missing_backing(name, backing_path)
            stamp = _creating_stamp(request)
        else:
            stamp = _adopt_backing(request)
        if file is not None:
            # Closed only at the end: the old lock keeps others out until the new file is there.
            file.retire()
        file = _create_metadata(request, stamp, known_zeroes=False)
        with contextlib.ExitStack() as undo_new:
            undo_new.callback(file.close)
            store = _open_with(request, file, undo_new)
            undo_new.pop_all()
        return store


def _creating_stamp(request: _Request) -> Stamp:
    """Return the promise of a file that does not exist yet; refuse where it cannot be made."""
    folder = os.path.dirname(request.backing_path) or "."
    if not os.path.isdir(folder):
        raise refusals.no_folder(request.name, request.backing_path, folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise refusals.open_failure(request.backing_path, request.name, error)
    tag = f"{request.random_id():016x}"
    return Stamp(BackingKind.FILE, request.size_bytes, tag=tag, creating=True)


def _adopt_backing(request: _Request) -> Stamp:
    """Check and tag a backing that is there, and return its stamp."""
    backing = Backing.open(request.backing_path, request.name)
    try:
        if backing.size_bytes != request.size_bytes:
            raise refusals.backing_size(
                request.name, request.backing_path, backing.size_bytes, request.size_bytes
            )
        backing.write_tag(f"{request.random_id():016x}")
        return backing.stamp()
    finally:
        backing.close()


def _create_metadata(
    request: _Request, stamp: Stamp, *, known_zeroes: bool
) -> metafile.DiskMetadataFile:
    facts = Facts(
        node_id=request.random_id(),
        size_bytes=request.size_bytes,
        known_zeroes=known_zeroes,
        peers=tuple(PeerRecord(peer) for peer in request.peer_names),
    )
    layout = Layout.for_volume(request.size_bytes)
    return metafile.create_locked(
        request.metadata_path,
        request.name,
        layout.file_bytes,
        layout.region(DIRTY_ID + max(0, len(request.peer_names) - 1)).end,
        lambda file: _fill(file, request.name, facts, stamp),
    )


def _fill(file: metafile.DiskMetadataFile, name: str, facts: Facts, stamp: Stamp) -> None:
    Metadata.create(file, name, facts, stamp)


def _open_with(
    request: _Request, file: metafile.DiskMetadataFile, undo: contextlib.ExitStack
) -> Store:
    """Load the metadata and open the backing that belongs to it; `undo` closes what is opened."""
    name, path = request.name, request.backing_path
    try:
        loaded = Metadata.load(file, name)
    except OSError as error:
        raise refusals.corrupt_metadata(name, f"reading it failed: {error}") from error
    if loaded.facts.size_bytes != request.size_bytes:
        raise refusals.size_changed(name, loaded.facts.size_bytes, request.size_bytes)
    recorded = loaded.metadata.stamp
    if recorded.creating:
        backing = _finish_creation(request, loaded.metadata, undo)
    else:
        try:
            backing = Backing.open(path, name)
        except FileNotFoundError as error:
            raise refusals.missing_backing(name, path) from error
        undo.callback(backing.close)
    if backing.size_bytes != request.size_bytes:
        raise refusals.backing_size(name, path, backing.size_bytes, request.size_bytes)
    found = backing.stamp()
    if not recorded.creating:
        reason = difference(recorded, found)
        if reason:
            raise refusals.foreign_backing(name, path, reason)
        # A reboot may have renumbered the device, a restore the inode; the tag said it is the one.
        loaded.metadata.set_stamp(replace(found, tag=found.tag or recorded.tag))
    if found.kind is BackingKind.BLOCK and not found.serial:
        loaded.reports.append(
            f"{path} shows no serial: whether it is the device that was recorded is not checked"
        )
    facts = _with_peers(name, loaded.facts, request.peer_names)
    for peer in request.peer_names:
        if peer not in loaded.maps.dirty:
            loaded.maps.dirty[peer] = Maps.empty(facts.size_bytes, (peer,)).dirty[peer]
    return Store(facts, loaded.maps, loaded.metadata, backing, loaded.reports, file)


def _finish_creation(request: _Request, metadata: Metadata, undo: contextlib.ExitStack) -> Backing:
    """Make the promised file, or go on where a crash interrupted its making.

    A file that is there is ours if it carries the promised tag, or if it is still empty: then
    nothing can be lost with it. Any other one is unknown.
    """
    name, path = request.name, request.backing_path
    tag = metadata.stamp.tag
    try:
        backing = Backing.create(path, name)
    except FileExistsError:
        backing = Backing.open(path, name)
    except FileNotFoundError as error:
        folder = os.path.dirname(path) or "."
        raise refusals.no_folder(name, path, folder) from error
    undo.callback(backing.close)
    if backing.kind is not BackingKind.FILE:
        raise refusals.unknown_backing(name, path)
    if backing.size_bytes != 0 and backing.stamp().tag != tag:
        raise refusals.unknown_backing(name, path)
    backing.write_tag(tag)
    try:
        backing.set_size(request.size_bytes)
    except OSError as error:
        # The file is ours and holds nothing; without it and its metadata the size can be corrected.
        os.unlink(path)
        os.unlink(request.metadata_path)
        raise refusals.cannot_make(name, path, request.size_bytes, error) from error
    metafile.sync_dir(os.path.dirname(path))
    metadata.set_stamp(backing.stamp())
    facts = metadata.facts
    metadata.carry_out(metadata.prepare(Commit(OPENING_COMMIT, facts)))
    return backing


def _with_peers(name: str, facts: Facts, peer_names: tuple[str, ...]) -> Facts:
    """Add a blank record for each configured peer that has none; keep all that exist."""
    known = [record.name for record in facts.peers]
    added = [peer for peer in peer_names if peer not in known]
    if not added:
        return facts
    _check_peer_count(name, (*known, *added))
    return replace(facts, peers=facts.peers + tuple(PeerRecord(peer) for peer in added))


def _check_peer_count(name: str, peer_names: tuple[str, ...]) -> None:
    if len(peer_names) > PEER_SLOTS:
        raise refusals.too_many_peers(name, peer_names, PEER_SLOTS)


@contextlib.contextmanager
def _explained(request: _Request) -> Iterator[None]:
    """Give an OSError that no rule above foresaw its three lines."""
    try:
        yield
    except OSError as error:
        path = error.filename or request.metadata_path
        raise refusals.open_failure(str(path), request.name, error) from error
