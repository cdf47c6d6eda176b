"""Generations and how two histories relate (design §5).

A generation answers "who has everything?". It names the primary and the in-sync set; any change of
either makes a new generation whose parent is the current one (G1). A node's lineage is its current
generation followed by its ancestors, newest first. Nothing here decides anything: `handshake.py`
does, on the relation that `relate` finds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

#: Ancestors kept at least, whatever their age (design §5).
LINEAGE_KEPT = 64


class Origin(enum.Enum):
    """Why a generation was made."""

    FIRST_CONTACT = "first-contact"
    ADOPTED = "adopted"
    PROMOTED = "promoted"
    ALONE = "alone"
    JOINED = "joined"
    PEER_DEAD = "peer-dead"
    DATA_LOST = "data-lost"


@dataclass(frozen=True, slots=True)
class Generation:
    """One entry of a lineage. Node ids and generation ids are random 63-bit numbers, never 0."""

    counter: int
    id: int
    #: Node id of the primary; 0 while no node has been primary yet.
    primary: int
    #: The in-sync set: node ids, ascending.
    members: tuple[int, ...]
    #: Whether a write may have been acknowledged under it; durable before the first one is.
    answered: bool
    origin: Origin
    #: Wall-clock time of its making, seconds since 1970; shown to people, never compared.
    made_at_s: int
    #: Who permitted it and why, in words; shown to people.
    permit: str = ""

    def __post_init__(self) -> None:
        assert self.id > 0 and self.counter > 0, self
        assert self.members == tuple(sorted(set(self.members))) and self.members, self


Lineage = tuple[Generation, ...]


class Relation(enum.Enum):
    """How my lineage stands to the peer's."""

    EQUAL = "equal"
    ANCESTOR = "ancestor"  # my current generation is an ancestor of the peer's
    DESCENDANT = "descendant"  # the peer's current generation is an ancestor of mine
    FORKED = "forked"  # there is a common ancestor, and both went on from it
    UNRELATED = "unrelated"


def relate(mine: Lineage, theirs: Lineage) -> Relation:
    """Find how two non-empty lineages (newest first) stand to each other."""
    assert mine and theirs
    if mine[0].id == theirs[0].id:
        return Relation.EQUAL
    if any(entry.id == mine[0].id for entry in theirs):
        return Relation.ANCESTOR
    if any(entry.id == theirs[0].id for entry in mine):
        return Relation.DESCENDANT
    return Relation.FORKED if common_ancestor(mine, theirs) else Relation.UNRELATED


def common_ancestor(mine: Lineage, theirs: Lineage) -> Generation | None:
    """Return my newest generation that the peer's lineage also holds, or None."""
    known = {entry.id for entry in theirs}
    return next((entry for entry in mine if entry.id in known), None)


def since(lineage: Lineage, ancestor_id: int) -> Lineage:
    """Return the entries newer than the ancestor, newest first; all if it is not in the lineage."""
    ids = [entry.id for entry in lineage]
    return lineage[: ids.index(ancestor_id)] if ancestor_id in ids else lineage


def answered_since(lineage: Lineage, ancestor_id: int) -> bool:
    """Whether any generation newer than the ancestor may have acknowledged a write."""
    for entry in lineage:
        if entry.id == ancestor_id:
            return False
        if entry.answered:
            return True
    return True


def sole_and_answered(lineage: Lineage, node_id: int) -> bool:
    """Whether the unbroken run of newest generations with the set {me} has acknowledged a write.

    That makes this node a lone survivor (design §8): nobody else can have been given the volume
    without an operator's word.
    """
    for entry in lineage:
        if entry.members != (node_id,):
            return False
        if entry.answered:
            return True
    return False


def within(lineage: Lineage, wanted_id: int, from_id: int, to_id: int) -> bool:
    """Whether `wanted_id` lies in the interval from_id..to_id (both inclusive) of the lineage."""
    ids = [entry.id for entry in lineage]
    if wanted_id not in ids or from_id not in ids or to_id not in ids:
        return False
    return ids.index(to_id) <= ids.index(wanted_id) <= ids.index(from_id)


def extend(lineage: Lineage, newest: Generation, keep_ids: Iterable[int]) -> Lineage:
    """Put a generation in front; age out entries that are older than all that must be kept."""
    assert not lineage or newest.counter == lineage[0].counter + 1, "lineage never goes back"
    grown = (newest, *lineage)
    needed = set(keep_ids)
    indexes = [index for index, entry in enumerate(grown) if entry.id in needed]
    if not indexes or len(grown) <= LINEAGE_KEPT:
        return grown[: max(LINEAGE_KEPT, max(indexes, default=0) + 1)]
    # Between the newest ones and the ones that a peer may still show lie only generations that
    # no peer was ever offered: nobody can ask for them. Their mark lives on in their successor.
    recent = list(grown[:LINEAGE_KEPT])
    gap = grown[LINEAGE_KEPT : max(LINEAGE_KEPT, min(indexes))]
    if any(entry.answered for entry in gap):
        recent[-1] = replace(recent[-1], answered=True)
    return (*recent, *grown[LINEAGE_KEPT + len(gap) : max(indexes) + 1])


def mark_answered(lineage: Lineage, answered: bool = True) -> Lineage:
    """Return the lineage with its current generation marked as answered, or as not."""
    return (replace(lineage[0], answered=answered), *lineage[1:])
