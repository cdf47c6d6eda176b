"""What operators order of a volume's copies: hold them back, let them go, compare everything.

Owns the way from an order to the core's verdict, like `orders.py`; what is held back, and whether a
comparison is safe, the core decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from repl.core import full_compare, pacing
from repl.core.full_compare import Ordered
from repl.core.pacing import RATE_BYTES_PER_S_MAX, Wish
from repl.core.verdict import Verdict, granted
from repl.errors import Refused, UsageError
from repl.node.engine import Engine
from repl.node.orders import Answer, Args, ask, giver, here, insist, settled


async def pause(engine: Engine, args: Args) -> Verdict:
    """Hold the copies of this volume back; who paused first, and when, stays."""
    volume = engine.volume
    wish = volume.pacing.own
    if not wish.paused:
        wish = Wish(True, wish.rate_bytes_per_s, giver(args), volume.wall_clock_s)
    return await _order(engine, wish)


async def resume(engine: Engine, args: Args) -> Verdict:
    """Let them go on."""
    wish = engine.volume.pacing.own
    return await _order(engine, replace(wish, paused=False, by=giver(args), since_s=0))


async def limit(engine: Engine, args: Args) -> Verdict:
    """Limit their rate to `rate_bytes_per_s`, 0 for no limit."""
    volume, rate = engine.volume, int(args.get("rate_bytes_per_s") or 0)
    if not 0 <= rate <= RATE_BYTES_PER_S_MAX:
        raise UsageError(
            f"{rate} bytes/s cannot be a rate limit.",
            f"it must be 0 (none) to {RATE_BYTES_PER_S_MAX}",
            f"replctl resync {volume.name} limit 100MB/s",
        )
    wish = volume.pacing.own
    by = wish.by if wish.paused else giver(args)
    return await _order(engine, replace(wish, rate_bytes_per_s=rate, by=by))


async def compare(engine: Engine, args: Args) -> Ordered | Verdict:
    """Compare this whole copy with that of the node `source`.

    Returns `Ordered.BECOME_NEW` where the caller has to reopen the copy as a new one.
    """
    volume, source = engine.volume, str(args.get("source") or "")
    what = f"Cannot compare the whole copy of {here(engine)}"
    if source == volume.node:
        raise Refused(
            f"{what} with itself.",
            f"--from names the node whose copy is kept, and {source} is this one",
            "run it on the node whose copy is to be compared and mended",
            code="RESYNC_SOURCE",
        )

    def look(answer: Answer) -> None:
        found = full_compare.judge(volume, source)
        answer(granted(found.name) if isinstance(found, Ordered) else found)

    verdict = settled(f"{what} with {source}'s", await insist(look))
    if verdict.reason == Ordered.BECOME_NEW.name:
        return Ordered.BECOME_NEW

    def order(number: int) -> None:
        full_compare.order(volume, number, source, giver(args))

    return settled(what, await ask(lambda answer: engine.ask(order, answer)))


COPY_ORDERS: Final[Mapping[str, Callable[[Engine, Args], Awaitable[Verdict]]]] = {
    "resync-pause": pause,
    "resync-resume": resume,
    "resync-limit": limit,
}


async def _order(engine: Engine, wish: Wish) -> Verdict:
    volume = engine.volume

    def order(number: int) -> None:
        pacing.order(volume, number, wish)

    verdict = await ask(lambda answer: engine.ask(order, answer))
    return settled(f"Cannot hold back the copies of {here(engine)}", verdict)
