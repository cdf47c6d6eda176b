"""Digests are what the protocol says; frames are applied in their order, or not at all."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from repl.core.facts import Maps
from repl.core.outbox import ApplyJob
from repl.core.wire import DIGEST_BYTES, Type
from repl.node.applying import Applier, digests_of
from repl.store.backing import Backing

BLOCK = 512


@given(
    st.lists(st.sampled_from([bytes(BLOCK), b"x" * BLOCK, bytes(BLOCK - 1) + b"y"]), max_size=6),
    st.binary(max_size=BLOCK - 1),
)
def test_every_block_has_its_own_blake2b_digest(blocks: list[bytes], tail: bytes) -> None:
    pieces = [*blocks, *([tail] if tail else [])]
    expected = b"".join(blake2b(piece, digest_size=DIGEST_BYTES).digest() for piece in pieces)
    assert digests_of(bytearray(b"".join(pieces)), BLOCK) == expected


class Core:
    """What the applier tells the volume."""

    def __init__(self) -> None:
        self.maps = Maps.empty(1 << 20, ("beta",))
        self.applied_seqs: list[int] = []
        self.full = ""

    def applied(self, _peer: str, seq: int) -> None:
        self.applied_seqs.append(seq)

    def compared(self, _peer: str, seq: int, *_rest: object) -> None:
        raise AssertionError(f"frame {seq} compared nothing")

    def no_space(self, reason: str) -> None:
        self.full = reason

    def space_back(self) -> None:
        self.full = ""


class Disk:
    """Takes writes up to a limit, slowly if told so."""

    def __init__(self) -> None:
        self.room_until = 1 << 20
        self.pause_s = 0.0

    def pwrite(self, buffer: bytes, offset: int) -> None:
        self.pwritev([buffer], offset)

    def pwritev(self, buffers: list[bytes], offset: int) -> None:
        time.sleep(self.pause_s)
        if offset + sum(map(len, buffers)) > self.room_until:
            raise OSError(errno.ENOSPC, "No space left on device")

    def reserve(self, offset: int, length: int) -> bool:
        self.pwritev([bytes(length)], offset)
        return True


def write_frame(seq: int, offset: int) -> ApplyJob:
    return ("beta", Type.WRITE, seq, offset, 512, 0, bytes(512))


def make_applier(
    core: Core, disk: Disk, later: list[Callable[[], None]], slice_s: float = 0.0
) -> Applier:
    def failed(reason: str) -> None:
        raise AssertionError(reason)

    return Applier(core, cast(Backing, disk), failed, slice_s, later.append)


def test_nothing_behind_a_frame_without_room_is_applied() -> None:
    core, disk = Core(), Disk()
    disk.room_until = 4096
    applier = make_applier(core, disk, [])
    applier.apply([write_frame(1, 0), write_frame(2, 8192), write_frame(3, 1024)])
    assert core.applied_seqs == [1] and core.full
    assert not applier.busy and applier.starved
    applier.probe()
    assert core.full, "still no room"
    disk.room_until = 1 << 20
    applier.probe()
    assert not core.full and not applier.starved
    assert core.applied_seqs == [1], "the connection is gone; the frame never comes back"


def test_long_batch_goes_on_in_later_turns_in_order() -> None:
    core, disk = Core(), Disk()
    disk.pause_s = 0.002
    later: list[Callable[[], None]] = []
    applier = make_applier(core, disk, later, slice_s=0.001)
    applier.apply([write_frame(seq, seq * 4096) for seq in range(1, 5)])
    assert core.applied_seqs == [1] and applier.busy
    applier.apply([write_frame(5, 40960)])
    assert core.applied_seqs == [1], "what comes later waits behind"
    while later:
        later.pop(0)()
    assert core.applied_seqs == [1, 2, 3, 4, 5] and not applier.busy


def test_ended_connection_takes_its_waiting_frames_along() -> None:
    core, disk = Core(), Disk()
    disk.pause_s = 0.002
    later: list[Callable[[], None]] = []
    applier = make_applier(core, disk, later, slice_s=0.001)
    applier.apply([write_frame(seq, seq * 4096) for seq in range(1, 4)])
    applier.discard("beta")
    assert not applier.busy
    later.pop(0)()
    assert core.applied_seqs == [1] and not later
