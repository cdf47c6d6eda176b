"""Which superblock slot is the truth, or why none can be trusted. Pure.

The marker (one sector, written whole or not at all) says whether the last close was complete. After
a complete close both slots hold the same record, so anything else is damage. Otherwise a crash may
have torn the slot that was being written, and the other one, which no write touched meanwhile,
holds the last state that anybody was told of.
"""

from __future__ import annotations

from dataclasses import dataclass

from repl.store.format import (
    Marker,
    NotUnderstood,
    OtherVersion,
    Superblock,
    decode_marker,
    decode_superblock,
)
from repl.store.record_json import FormatError


@dataclass(frozen=True, slots=True)
class Choice:
    """The slot to trust, its record, what the marker says, and what people should hear of."""

    slot: int
    superblock: Superblock
    #: Whether the other slot holds no whole record.
    other_torn: bool
    #: Whether the marker must be written as open before the next slot is overwritten.
    marker_closed: bool
    reports: tuple[str, ...]


def choose_superblock(marker_raw: bytes, slots_raw: tuple[bytes, bytes]) -> Choice:
    """Choose between the two slots' raw bytes.

    Raises FormatError when no record can be trusted. A whole record of another format version, or
    one that is not understood, was not torn by a crash: an older record beside it must not win, so
    it raises too (OtherVersion, NotUnderstood).
    """
    slots, problems = _decode_slots(slots_raw)
    try:
        marker: Marker | None = decode_marker(marker_raw)
    except FormatError:
        marker = None
    if slots[0] is None and slots[1] is None:
        raise FormatError("; ".join(problems))
    if marker is not None and marker.closed:
        return _after_clean_close(marker, slots, problems)
    return _after_unclean_close(marker, slots, problems)


def _decode_slots(
    slots_raw: tuple[bytes, bytes],
) -> tuple[tuple[Superblock | None, Superblock | None], list[str]]:
    slots: list[Superblock | None] = []
    problems = []
    for number, raw in enumerate(slots_raw):
        try:
            slots.append(decode_superblock(raw))
        except (OtherVersion, NotUnderstood):
            raise
        except FormatError as error:
            slots.append(None)
            problems.append(f"superblock slot {number} holds {error}")
    return (slots[0], slots[1]), problems


def _after_clean_close(
    marker: Marker, slots: tuple[Superblock | None, Superblock | None], problems: list[str]
) -> Choice:
    if problems:
        raise FormatError(f"{problems[0]} although the last close was complete")
    first = slots[0]
    assert first is not None
    if first != slots[1]:
        raise FormatError("the superblock slots differ although the last close was complete")
    if first.serial != marker.serial or not first.body.facts.clean:
        raise FormatError("the superblock slots are not those of the last close")
    return Choice(0, first, other_torn=False, marker_closed=True, reports=())


def _after_unclean_close(
    marker: Marker | None,
    slots: tuple[Superblock | None, Superblock | None],
    problems: list[str],
) -> Choice:
    reports = list(problems)
    if marker is None:
        if problems:
            raise FormatError(f"{problems[0]}, and the open/closed marker is damaged")
        reports.append("the open/closed marker is damaged; both superblock slots are whole")
    slot = max((0, 1), key=lambda number: _serial(slots[number]))
    newest, other = slots[slot], slots[1 - slot]
    assert newest is not None
    if other is not None:
        if other.serial == newest.serial and other != newest:
            raise FormatError("the superblock slots hold different records of one serial number")
        if newest.serial - other.serial > 1:
            reports.append(
                f"superblock slot {1 - slot} missed a write (serial {other.serial}, "
                f"the other has {newest.serial})"
            )
    if marker is not None and newest.serial < marker.serial:
        raise FormatError(
            f"the newest superblock has serial {newest.serial}, "
            f"older than the last opening's {marker.serial}"
        )
    # A damaged marker is rewritten like a closed one.
    return Choice(slot, newest, other is None, marker is None, tuple(reports))


def _serial(superblock: Superblock | None) -> int:
    return -1 if superblock is None else superblock.serial
