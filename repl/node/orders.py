"""What operators ask of a volume's core: asked again while a refusal passes by itself, and worded.

Owns the way from an order to the core's verdict; what is decided, and its reason, are the core's.
Each order returns a granted verdict or raises `Refused`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from repl.core.promotion import PromoteRequest
from repl.core.snapshot import split_brain_snapshot
from repl.core.splitbrain import not_split
from repl.core.states import Phase
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.errors import NoSuchThing, Refused
from repl.node.engine import Engine

#: Refusals that pass by themselves are asked again for this long before they are given out.
TRANSIENT_WAIT_S: Final = 5.0
TRANSIENT_STEP_S: Final = 0.1
#: For the end of a handshake that nobody answered to be noticed.
HANDSHAKE_MARGIN_S: Final = 1.5
TRANSIENT_CODES: Final = frozenset({"PROMOTE_HANDSHAKE", "PROMOTE_SETTLING", "VOLUME_BUSY"})

Answer = Callable[[Verdict], None]
Args = Mapping[str, Any]


async def promote(engine: Engine, args: Args) -> Verdict:
    """Make this node primary: `peer_dead`, `lose_data`, `accept_half_copied`."""
    request = PromoteRequest(
        peer_dead=args.get("peer_dead") or "",
        lose_data=bool(args.get("lose_data")),
        accept_half_copied=bool(args.get("accept_half_copied")),
        by=giver(args),
    )
    # A node that hangs accepts connections: only the end of its time tells that nobody answers.
    patience_s = engine.volume.timeouts.peer_timeout_s + HANDSHAKE_MARGIN_S
    before = engine.demotions_ordered
    verdict = await insist(
        lambda answer: engine.promote(request, answer),
        patience_s,
        lambda: engine.demotions_ordered == before,
    )
    return settled(f"Cannot promote {here(engine)}", verdict)


async def demote(engine: Engine, args: Args) -> Verdict:
    """Make this node secondary; `drop_clients`, or nobody may hold the export."""
    engine.demotions_ordered += 1
    drop_clients = bool(args.get("drop_clients"))
    names = engine.client_names
    if names and not drop_clients and engine.volume.is_primary:
        raise Refused(
            f"Cannot demote {here(engine)}: {_holders(len(names))} it.",
            f"attached: {', '.join(names[:8])}",
            f"detach them, or: replctl demote {engine.volume.name} --drop-clients",
            code="DEMOTE_CLIENTS",
        )
    # Requests of clients that are gone are answered to nobody: no permit is needed for them.
    silent = drop_clients or engine.volume.alone.question is not None
    verdict = await ask(lambda answer: engine.demote(silent, answer))
    return settled(f"Cannot demote {here(engine)}", verdict)


def _holders(count: int) -> str:
    return "1 client holds" if count == 1 else f"{count} clients hold"


async def go_on(engine: Engine, args: Args) -> Verdict:
    """Let a frozen primary go on without its peer."""
    alone, by = engine.volume.alone, giver(args)
    verdict = await ask(lambda answer: engine.ask(lambda n: alone.give(n, by), answer))
    return settled(f"Cannot continue {here(engine)}", verdict)


async def resolve(engine: Engine, args: Args) -> Verdict:
    """End a split-brain: the copy on the node `keep` is kept."""
    keep = str(args.get("keep"))
    verdict = await insist(
        lambda answer: engine.ask(lambda number: engine.volume.resolve(number, keep), answer)
    )
    cut_by = str(args.get("cut_by") or "")
    if verdict.code == "NOT_SPLIT" and cut_by:
        # The core does not know why the peer is away.
        verdict = not_split(engine.volume, list(engine.volume.sessions.values()), cut_by)
    return settled(f"Cannot resolve the split-brain of {engine.volume.name}", verdict)


def split_brain(volume: Volume, cut_by: str) -> dict[str, Any]:
    """Return the object of `splitbrain show`; `cut_by` as for `not_split`."""
    shown = split_brain_snapshot(volume)
    if cut_by and not shown["split_brain"]:
        bar = not_split(volume, list(volume.sessions.values()), cut_by)
        shown |= {"why": bar.reason, "next": bar.next_step}
    return shown


async def adopt(engine: Engine) -> Verdict:
    """Declare this copy the volume's data."""
    return settled(f"Cannot adopt {here(engine)}", await ask(engine.adopt))


ORDERS: Final[Mapping[str, Callable[[Engine, Args], Awaitable[Verdict]]]] = {
    "promote": promote,
    "demote": demote,
    "continue": go_on,
    "splitbrain-resolve": resolve,
}


def may_be_last_copy(volume: Volume) -> bool:
    """Whether discarding this copy could discard the only one that has everything."""
    facts = volume.facts
    if facts.fresh or facts.inconsistent or facts.outdated or volume.failed:
        return False
    # A copy that was chosen to be kept stays: the other one may be giving itself up.
    splits = [session.split for session in volume.sessions.values() if session.split is not None]
    if any(split.kept for split in splits):
        return True
    phases = {session.phase for session in volume.sessions.values()}
    # Elsewhere there is a complete copy, or (split-brain, refused) one that a person chose.
    elsewhere = {Phase.ESTABLISHED, Phase.TARGET, Phase.SPLIT_BRAIN, Phase.REFUSED}
    return not phases & elsewhere


def giver(args: Args) -> str:
    """Return who gave the order, as the control API knows it: "uid 0", or nothing."""
    return str(args.get("by") or "")


def here(engine: Engine) -> str:
    """Return the volume and the node, for a sentence."""
    return f"{engine.volume.name} on {engine.volume.node}"


async def ask(question: Callable[[Answer], None]) -> Verdict:
    """Ask the core once, and return its verdict."""
    answered: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def answer(verdict: Verdict) -> None:
        if not answered.done():
            answered.set_result(verdict)

    question(answer)
    return await answered


async def insist(
    question: Callable[[Answer], None],
    patience_s: float = 0.0,
    wanted: Callable[[], bool] = lambda: True,
) -> Verdict:
    """Ask again as long as the refusal is one that passes by itself, for `patience_s` at least.

    wanted: whether the order stands still; whoever gave it may have been told to undo it.
    """
    deadline_s = time.monotonic() + max(TRANSIENT_WAIT_S, patience_s)
    while True:
        verdict = await ask(question)
        if verdict.ok or verdict.code not in TRANSIENT_CODES or time.monotonic() > deadline_s:
            return verdict
        await asyncio.sleep(TRANSIENT_STEP_S)
        if not wanted():
            return verdict


def settled(what: str, verdict: Verdict) -> Verdict:
    """Return a verdict that says yes; raise one that says no."""
    if not verdict.ok:
        family = NoSuchThing if verdict.code == "NO_SUCH_PEER" else Refused
        # The reason is said once, as the Why: where it is long, twice is hard to read.
        next_step = verdict.next_step or "replctl status"
        raise family(f"{what}.", verdict.reason, next_step, code=verdict.code)
    return verdict
