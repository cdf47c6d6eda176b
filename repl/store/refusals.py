"""The sentences with which the store refuses: what, why, and the exact next command.

One function for each reason, so that a reason is worded once. Nothing is decided here.
"""

from __future__ import annotations

import errno
import os

from repl.errors import PermissionRefused, Refused, ReplError


def in_use(path: str, name: str) -> Refused:
    """Another process holds the file locked, or holds the device."""
    return Refused(
        f"Volume {name} cannot be opened: {path} is in use.",
        "Another process holds it, perhaps an earlier repld that has not ended yet.",
        f"See who holds it: fuser -v {path}",
        code="BACKING_IN_USE",
    )


def open_failure(path: str, name: str, error: OSError) -> ReplError:
    """Return the failure for an OSError of opening or making a file of the volume."""
    if error.errno == errno.EBUSY:
        return in_use(path, name)
    what = f"Volume {name} cannot be opened: {path}: {error.strerror or error}."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionRefused(
            what, "The user that runs repld may not read and write there.", f"Look at: ls -l {path}"
        )
    if error.errno == errno.EISDIR:
        return not_a_backing(path, name)
    return Refused(
        what,
        "The system refused to open or make it.",
        f"Look at: ls -ld {path} {os.path.dirname(path) or '.'}",
        code="BACKING_UNREADABLE",
    )


def not_a_backing(path: str, name: str) -> ReplError:
    """The path names a folder, a socket or the like."""
    return Refused(
        f"The backing {path} of volume {name} cannot be used.",
        "It is neither a regular file nor a block device.",
        f"Correct volumes.{name}.backing in the configuration.",
        code="BACKING_UNREADABLE",
    )


def unknown_backing(name: str, path: str) -> Refused:
    """A backing that was not made here, and no metadata that knows it."""
    return Refused(
        f"The backing {path} of volume {name} is unknown.",
        "It exists already, and the volume has no metadata that says what it holds.",
        f"If this copy is the good one: replctl volume adopt {name}. If it may be overwritten with "
        f"another node's data: replctl volume adopt {name} --discard",
        code="BACKING_UNKNOWN",
    )


def missing_backing(name: str, path: str) -> Refused:
    """Metadata without its backing: a filesystem that is not mounted, most likely."""
    return Refused(
        f"The backing {path} of volume {name} does not exist, and nothing was made in its place.",
        "The volume holds data, so an empty file would be a lost copy. "
        "Perhaps a filesystem is not mounted.",
        f"Mount it and restart repld. If the disk was replaced: "
        f"replctl volume adopt {name} --discard",
        code="BACKING_MISSING",
    )


def foreign_backing(name: str, path: str, reason: str) -> Refused:
    """The backing is another one than the metadata was made for."""
    return Refused(
        f"The backing {path} of volume {name} is not the one that its metadata describes.",
        f"{reason[:1].upper()}{reason[1:]}.",
        f"Put the right one in its place and restart repld. If the disk was replaced or restored: "
        f"replctl volume adopt {name} --discard",
        code="BACKING_FOREIGN",
    )


def backing_size(name: str, path: str, found_bytes: int, size_bytes: int) -> Refused:
    """The backing is larger or smaller than the volume."""
    return Refused(
        f"The backing {path} of volume {name} has {found_bytes} bytes, the volume {size_bytes}.",
        "A backing has exactly its volume's size; it was cut short, extended or replaced.",
        f"Look at it: ls -l {path}. For a backing without metadata: set volumes.{name}.size to "
        f"{found_bytes} on every node.",
        code="BACKING_SIZE",
    )


def size_changed(name: str, recorded_bytes: int, size_bytes: int) -> Refused:
    """The configuration gives another size than the volume was made with."""
    return Refused(
        f"Volume {name} was made with {recorded_bytes} bytes; the configuration says {size_bytes}.",
        "The size of a volume that exists cannot be changed.",
        f"Set volumes.{name}.size to {recorded_bytes}.",
        code="METADATA_MISMATCH",
    )


def too_many_peers(name: str, peer_names: tuple[str, ...], limit: int) -> Refused:
    """The metadata file has no room for another peer's dirty map."""
    return Refused(
        f"Volume {name} has {len(peer_names)} peers; its metadata has room for {limit}.",
        f"It remembers what each of these lacks: {', '.join(peer_names)}.",
        "Take a peer out of the configuration. To forget the earlier ones by a full copy from "
        f"another node: replctl volume adopt {name} --discard",
        code="METADATA_MISMATCH",
    )


def no_folder(name: str, path: str, folder: str) -> ReplError:
    """The folder of a backing that is to be made does not exist."""
    return ReplError(
        f"The backing {path} of volume {name} cannot be made.",
        f"There is no folder {folder}. Perhaps a filesystem is not mounted.",
        f"Mount it, or: mkdir -p {folder}; then restart repld.",
        code="BACKING_UNREADABLE",
    )


def cannot_make(name: str, path: str, size_bytes: int, error: OSError) -> ReplError:
    """The filesystem refuses a file of the volume's size."""
    return ReplError(
        f"The backing {path} of volume {name} cannot be made with {size_bytes} bytes.",
        f"The filesystem refused: {error.strerror or error}. Nothing was left behind.",
        f"Give volumes.{name} a smaller size, or a backing on another filesystem.",
        code="BACKING_UNREADABLE",
    )


def adopt_not_needed(name: str) -> Refused:
    """The volume knows its copy already."""
    return Refused(
        f"Volume {name} needs no adoption.",
        "Its metadata exists and already says what its copy holds.",
        f"To promote this copy: replctl promote {name}. To have it overwritten by another node's: "
        f"replctl volume adopt {name} --discard",
        code="ADOPT_NOT_NEEDED",
    )


def corrupt_metadata(name: str, clause: str) -> Refused:
    """The metadata is damaged beyond what a crash can do."""
    return Refused(
        f"The metadata of volume {name} cannot be trusted.",
        f"{clause[:1].upper()}{clause[1:]}.",
        f"If another node has the data: replctl volume adopt {name} --discard (this copy is then "
        f"overwritten). If this is the only copy: move volumes/{name}.meta in the state directory "
        f"away, then replctl volume adopt {name}",
        code="METADATA_CORRUPT",
    )


def other_format(name: str, found_version: int, version: int) -> Refused:
    """The metadata was written by a program with another format."""
    return Refused(
        f"The metadata of volume {name} has format version {found_version}.",
        f"This program reads and writes format version {version} only.",
        "Run the version of repld that wrote it.",
        code="METADATA_FORMAT",
    )


def other_volume(name: str, recorded_name: str) -> Refused:
    """The metadata file was made for another volume."""
    return Refused(
        f"The metadata of volume {name} cannot be used.",
        f"It was written for volume {recorded_name}.",
        f"Put the right file at volumes/{name}.meta in the state directory, or rename the volume "
        "in the configuration.",
        code="METADATA_MISMATCH",
    )


def no_room(name: str, generations: int, clause: str) -> ReplError:
    """The superblock record outgrew its slot."""
    return ReplError(
        f"The metadata of volume {name} has no room for its history.",
        f"It would take {clause}. {generations} generations are kept because a peer that is away "
        "may still need them.",
        "Connect the peer that is away.",
    )
