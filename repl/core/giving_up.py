"""The one record by which a copy gives up what it wrote since a fork (design §5).

It changes facts and maps in memory, and nothing else: the caller has found out that this side is
the one, and commits it with the maps. Not a byte of data is touched; the next handshake finds an
ancestor, and its copy begins only after a record of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core import lineage

if TYPE_CHECKING:
    from repl.core.lineage import Generation
    from repl.core.session import Session


def give_up_unanswered(session: Session) -> None:
    """Handshake row "one side answered nothing": give up those generations, without a person."""
    volume = session.volume
    ancestor = _fork_point(session)
    if lineage.answered_since(volume.facts.lineage, ancestor.id):
        session.drop("a write was answered during the handshake: it begins anew")
        return
    take_back(session)
    reason = f"it answered nothing under its own; the copy of {session.name} goes on"
    volume.tell("FORK_DISCARDED", f"{volume.node} gives up a generation: {reason}")
    volume.roles.step_down(reason)


def take_back(session: Session) -> None:
    """Make the record, in memory.

    The current generation becomes the common ancestor. What this copy may have changed since, as
    far as its own map knows, is counted as not its own any more.
    """
    volume = session.volume
    mine, theirs = volume.facts, session.their_hello
    assert theirs is not None
    ancestor = _fork_point(session)
    record = mine.peer(session.name)
    remaining = volume.maps.remaining
    remaining.merge(volume.maps.dirty[session.name])
    volume.intents.mark_all_in(remaining)
    if not lineage.within(mine.lineage, ancestor.id, record.base_from, record.base_to):
        remaining.mark_all()
    index = [entry.id for entry in mine.lineage].index(ancestor.id)
    volume.change_facts(
        lineage=mine.lineage[index:],
        inconsistent=True,
        source_generation=theirs.lineage[0].id,
    )


def _fork_point(session: Session) -> Generation:
    assert session.their_hello is not None
    ancestor = lineage.common_ancestor(session.volume.facts.lineage, session.their_hello.lineage)
    assert ancestor is not None, "a fork has a point where it began"
    return ancestor
