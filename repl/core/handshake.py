"""The handshake: one pure function of both sides' facts (design §5).

`decide(mine, theirs)` says what this side does on the new connection. Called with its arguments
exchanged it gives the mirror-image answer: `MIRROR` pairs the actions, and a test enumerates the
input space. No rule here clears a dirty map: only a finished copy or comparison does (design §1.5).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from repl.core import lineage
from repl.core.hello import Hello
from repl.core.lineage import Origin, Relation


class Action(enum.Enum):
    """What this side does. A settle compares, a resync copies by map, a full examines all."""

    REFUSE = "refuse"
    WAIT = "wait"
    SPLIT_BRAIN = "split-brain"
    FIRST_CONTACT_SOURCE = "first-contact-source"
    FIRST_CONTACT_TARGET = "first-contact-target"
    SETTLE_SOURCE = "settle-source"
    SETTLE_TARGET = "settle-target"
    RESYNC_SOURCE = "resync-source"
    RESYNC_TARGET = "resync-target"
    FULL_SOURCE = "full-source"
    FULL_TARGET = "full-target"
    #: Discard this side's unanswered generations, then shake hands again; and its counterpart.
    YIELD = "yield"
    AWAIT_YIELD = "await-yield"
    #: Go on under a generation of its own, then shake hands again; and its counterpart.
    PART = "part"
    AWAIT_PART = "await-part"


MIRROR: dict[Action, Action] = {
    Action.REFUSE: Action.REFUSE,
    Action.WAIT: Action.WAIT,
    Action.SPLIT_BRAIN: Action.SPLIT_BRAIN,
    Action.FIRST_CONTACT_SOURCE: Action.FIRST_CONTACT_TARGET,
    Action.FIRST_CONTACT_TARGET: Action.FIRST_CONTACT_SOURCE,
    Action.SETTLE_SOURCE: Action.SETTLE_TARGET,
    Action.SETTLE_TARGET: Action.SETTLE_SOURCE,
    Action.RESYNC_SOURCE: Action.RESYNC_TARGET,
    Action.RESYNC_TARGET: Action.RESYNC_SOURCE,
    Action.FULL_SOURCE: Action.FULL_TARGET,
    Action.FULL_TARGET: Action.FULL_SOURCE,
    Action.YIELD: Action.AWAIT_YIELD,
    Action.AWAIT_YIELD: Action.YIELD,
    Action.PART: Action.AWAIT_PART,
    Action.AWAIT_PART: Action.PART,
}

SOURCE_ACTIONS = frozenset(
    {
        Action.FIRST_CONTACT_SOURCE,
        Action.SETTLE_SOURCE,
        Action.RESYNC_SOURCE,
        Action.FULL_SOURCE,
    }
)
#: The other side changes what it is, and then both shake hands again; until then it may answer.
AWAITED = (Action.AWAIT_YIELD, Action.AWAIT_PART)
TARGET_ACTIONS = frozenset(MIRROR[action] for action in SOURCE_ACTIONS)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, the rule's stable name, and the sentence that log and status show."""

    action: Action
    rule: str
    sentence: str
    next_step: str = ""


def decide(mine: Hello, theirs: Hello) -> Decision:
    """Decide from both sides' hellos; the first rule that applies wins."""
    return (
        _identity(mine, theirs)
        or _freshness(mine, theirs)
        or _contact(mine, theirs)
        or _inconsistency(mine, theirs)
        or _history(mine, theirs)
    )


def _refuse(rule: str, sentence: str, next_step: str = "") -> Decision:
    return Decision(Action.REFUSE, rule, sentence, next_step)


def _comparison(mine: Hello, theirs: Hello) -> str:
    """The way on where nothing known makes the two copies one: a person names the one to keep."""
    command = f"replctl resync {mine.volume} --full --from"
    return (
        f"to keep {theirs.node}'s copy, on {mine.node}: {command} {theirs.node}; "
        f"to keep {mine.node}'s, on {theirs.node}: {command} {mine.node}"
    )


def _identity(mine: Hello, theirs: Hello) -> Decision | None:
    if abs(mine.protocol - theirs.protocol) > 1:
        return _refuse(
            "protocol-version",
            f"The peers speak the protocol versions {mine.protocol} and {theirs.protocol}.",
            "upgrade one node at a time, by one version",
        )
    if mine.node_id == theirs.node_id:
        return _refuse(
            "cloned-node",
            "The peer shows this node's own id: one of the two is a copy of the other machine.",
            f"on the copy: replctl volume adopt {mine.volume} --discard",
        )
    if mine.size_bytes != theirs.size_bytes or mine.block_shift != theirs.block_shift:
        return _refuse(
            "size",
            f"The copies have different sizes: {mine.size_bytes} bytes on {mine.node}, "
            f"{theirs.size_bytes} on {theirs.node}.",
            "give the volume one size in both configurations",
        )
    if mine.volume_id and theirs.volume_id and mine.volume_id != theirs.volume_id:
        return _refuse(
            "other-volume",
            f"The volume called {mine.volume} on {theirs.node} is another volume.",
            f"on the node whose copy may be overwritten: "
            f"replctl volume adopt {mine.volume} --discard",
        )
    return None


def _freshness(mine: Hello, theirs: Hello) -> Decision | None:
    if mine.fresh and theirs.fresh:
        if not (mine.known_zeroes and theirs.known_zeroes):
            return Decision(
                Action.WAIT,
                "both-fresh",
                "Neither copy is known to be the right one.",
                f"on the node with the good copy: replctl volume adopt {mine.volume}",
            )
        action = (
            Action.FIRST_CONTACT_SOURCE
            if mine.node_id < theirs.node_id
            else Action.FIRST_CONTACT_TARGET
        )
        return Decision(action, "both-zero", "Both copies are new and all zeroes.")
    if not (mine.fresh or theirs.fresh):
        return None
    holder = theirs if mine.fresh else mine
    if holder.inconsistent:
        return _refuse(
            "fresh-meets-inconsistent",
            f"The only copy that holds data, on {holder.node}, is inconsistent.",
            "connect a node with a complete copy",
        )
    action = Action.FULL_TARGET if mine.fresh else Action.FULL_SOURCE
    return Decision(action, "one-fresh", f"One copy is new; {holder.node} has the data.")


def _contact(mine: Hello, theirs: Hello) -> Decision | None:
    met_mine = mine.known_peer_id == theirs.node_id and bool(mine.tokens)
    met_theirs = theirs.known_peer_id == mine.node_id and bool(theirs.tokens)
    if not (met_mine or met_theirs):
        return None
    if met_mine and met_theirs and set(mine.tokens) & set(theirs.tokens):
        return None
    return _refuse(
        "no-common-contact",
        "The two nodes do not remember the same last contact: one of them was restored from a "
        "backup, a snapshot or a clone.",
        _comparison(mine, theirs),
    )


def _inconsistency(mine: Hello, theirs: Hello) -> Decision | None:
    if not (mine.inconsistent or theirs.inconsistent):
        return None
    if mine.inconsistent and theirs.inconsistent:
        return _refuse(
            "both-inconsistent",
            "Both copies are inconsistent.",
            f"if no complete copy is left, choose one as it is: replctl promote {mine.volume} "
            f"--lose-data {mine.volume} --accept-half-copied",
        )
    broken, whole_copy = (mine, theirs) if mine.inconsistent else (theirs, mine)
    relation = lineage.relate(broken.lineage, whole_copy.lineage)
    if relation in (Relation.DESCENDANT, Relation.FORKED):
        ancestor = lineage.common_ancestor(broken.lineage, whole_copy.lineage)
        assert ancestor is not None
        if not lineage.answered_since(broken.lineage, ancestor.id):
            # Whatever the newer generations hold, nobody was promised it.
            return Decision(
                Action.YIELD if mine is broken else Action.AWAIT_YIELD,
                "newer-answered-nothing",
                f"The copy on {broken.node} is inconsistent and acknowledged no write under its "
                "own generation, which it gives up.",
            )
        return _refuse(
            "newer-is-inconsistent",
            f"The copy on {broken.node} has newer writes but is inconsistent.",
            f"connect a node with a complete copy, or go back to the older copy: "
            f"replctl promote {mine.volume} --lose-data {mine.volume}",
        )
    if relation is Relation.UNRELATED:
        return None
    if relation is Relation.EQUAL or broken.everything_suspect:
        whole = broken.everything_suspect
        return _copy(
            mine is broken,
            whole,
            "inconsistent-equal",
            f"The copy on {broken.node} is incomplete; the other one is complete.",
        )
    return None


def _history(mine: Hello, theirs: Hello) -> Decision:
    relation = lineage.relate(mine.lineage, theirs.lineage)
    if relation is Relation.EQUAL:
        return _settle(mine, theirs)
    if relation in (Relation.ANCESTOR, Relation.DESCENDANT):
        behind, ahead = (mine, theirs) if relation is Relation.ANCESTOR else (theirs, mine)
        if behind.is_primary and _forced_since(ahead, behind):
            # `--lose-data` was wrong (design §8): this one holds all that it acknowledged.
            return Decision(
                Action.PART if mine is behind else Action.AWAIT_PART,
                "forced-beside-a-primary",
                f"{ahead.node} was promoted as it was while {behind.node} was primary, which goes "
                "on without it.",
            )
        if base_is_valid(ahead, behind):
            sentence = f"{behind.node} missed writes; {ahead.node} knows which blocks they changed."
            return _copy(mine is behind, False, "ancestor", sentence)
        sentence = f"{behind.node} missed writes and nobody knows where: every block is compared."
        return _copy(mine is behind, True, "ancestor-without-base", sentence)
    if relation is Relation.FORKED:
        return _fork(mine, theirs)
    return _refuse(
        "unrelated",
        "The two copies of the volume have no common history.",
        _comparison(mine, theirs),
    )


def _forced_since(ahead: Hello, behind: Hello) -> bool:
    """Whether a copy was promoted as it was: it may lack what its history says that it holds."""
    newer = lineage.since(ahead.lineage, behind.lineage[0].id)
    return any(generation.origin is Origin.DATA_LOST for generation in newer)


def base_is_valid(source: Hello, target: Hello) -> bool:
    """G7: whether the source's dirty map for this target covers all that it may lack."""
    return base_covers(source, target, target.lineage[0].id)


def base_covers(mine: Hello, theirs: Hello, generation_id: int) -> bool:
    """G7: whether my dirty map for the other side holds all that changed since that generation."""
    return mine.known_peer_id == theirs.node_id and lineage.within(
        mine.lineage, generation_id, mine.base_from, mine.base_to
    )


def _copy(i_am_target: bool, whole: bool, rule: str, sentence: str) -> Decision:
    if whole:
        action = Action.FULL_TARGET if i_am_target else Action.FULL_SOURCE
    else:
        action = Action.RESYNC_TARGET if i_am_target else Action.RESYNC_SOURCE
    return Decision(action, rule, sentence)


def _settle(mine: Hello, theirs: Hello) -> Decision:
    members = mine.lineage[0].members
    if mine.node_id not in members or theirs.node_id not in members:
        return _refuse(
            "not-a-member",
            "Both copies show the same generation, but one of them was never in its in-sync set.",
            _comparison(mine, theirs),
        )
    if mine.is_primary and theirs.is_primary:
        return _refuse(
            "two-primaries",
            "Both nodes claim to be primary of one generation.",
            f"on the node whose clients can be closed: replctl demote {mine.volume} --drop-clients",
        )
    action = Action.SETTLE_SOURCE if _is_settle_source(mine, theirs) else Action.SETTLE_TARGET
    if mine.has_dirt or theirs.has_dirt or mine.cache_lost or theirs.cache_lost:
        return Decision(
            action,
            "equal-unsettled",
            "Both copies have the same writes but for some in flight: those blocks are compared.",
        )
    return Decision(action, "equal", "Both copies have the same writes.")


def _is_settle_source(mine: Hello, theirs: Hello) -> bool:
    if mine.is_primary != theirs.is_primary:
        return mine.is_primary
    if mine.cache_lost != theirs.cache_lost:
        return not mine.cache_lost
    if None not in (mine.crashed, theirs.crashed) and mine.crashed != theirs.crashed:
        # A failed sync may have taken from the crashed one what the other still has.
        return not mine.crashed
    last_primary = mine.lineage[0].primary
    if last_primary in (mine.node_id, theirs.node_id):
        return last_primary == mine.node_id
    return mine.node_id < theirs.node_id


def _fork(mine: Hello, theirs: Hello) -> Decision:
    ancestor = lineage.common_ancestor(mine.lineage, theirs.lineage)
    assert ancestor is not None
    i_answered = lineage.answered_since(mine.lineage, ancestor.id)
    they_answered = lineage.answered_since(theirs.lineage, ancestor.id)
    if i_answered and they_answered:
        return Decision(
            Action.SPLIT_BRAIN,
            "split-brain",
            f"Both copies acknowledged writes that the other lacks, since generation "
            f"{ancestor.counter}.",
            f"replctl splitbrain show {mine.volume}",
        )
    if i_answered != they_answered:
        i_yield = they_answered
    elif mine.is_primary != theirs.is_primary:
        i_yield = theirs.is_primary
    else:
        i_yield = mine.node_id > theirs.node_id
    loser = mine if i_yield else theirs
    return Decision(
        Action.YIELD if i_yield else Action.AWAIT_YIELD,
        "unanswered-fork",
        f"{loser.node} acknowledged no write under its own generation and gives it up.",
    )
