"""What holds a copy back by order of an operator: a pause, and a limit of its rate.

Either side may hold a copy back: what the target wishes reaches the source with its STATUS frames,
and the stricter wish counts. Resyncs and full comparisons are held back; a settle never is, since
writes wait for it and it is short. Mirrored writes are no copy: they flow on. A wish lives as long
as the process, not the connection; `repl/node` gives it to the next process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repl.core.verdict import granted, operator
from repl.core.wire import Fields, PeerError

if TYPE_CHECKING:
    from repl.core.volume import Volume

#: A limited copy may catch up on this much time that it did not use.
BURST_S = 0.25
#: The largest limit that is understood; more is no limit.
RATE_BYTES_PER_S_MAX = 1 << 60


@dataclass(frozen=True, slots=True)
class Wish:
    """What one side wants. `rate_bytes_per_s` 0 is no limit; `by` says whose word it was."""

    paused: bool = False
    rate_bytes_per_s: int = 0
    by: str = ""
    #: Wall-clock time of the pause, for people.
    since_s: int = 0


class Pacing:
    """This side's wish for all copies of a volume, and the budget of those it is the source of."""

    def __init__(self, wish: Wish, now_s: float) -> None:
        self.own = wish
        self._budget_bytes = 0.0
        self._filled_s = now_s

    def limit(self, theirs: Wish) -> int:
        """The stricter of both sides' limits in bytes per second, 0 for none."""
        return min(
            (w.rate_bytes_per_s for w in (self.own, theirs) if w.rate_bytes_per_s), default=0
        )

    def may_read(self, theirs: Wish, now_s: float) -> bool:
        """Whether the next chunk of a copy may be read now."""
        if self.own.paused or theirs.paused:
            return False
        limit = self.limit(theirs)
        if not limit:
            # What unlimited copies used is no debt of a limit that comes later.
            self._budget_bytes, self._filled_s = 0.0, now_s
            return True
        passed_s, self._filled_s = now_s - self._filled_s, now_s
        most = limit * BURST_S
        self._budget_bytes = min(most, self._budget_bytes + limit * passed_s)
        # A chunk may be larger than the burst: it goes into debt, and the next one waits for that.
        return self._budget_bytes > 0

    def spent(self, count_bytes: int) -> None:
        """A chunk of so many bytes is being read (negative: it turned out to be a hole)."""
        self._budget_bytes -= count_bytes


def wish_to_json(wish: Wish) -> dict[str, Any]:
    """Return a wish as the fields that a STATUS frame carries."""
    return {
        "paused": wish.paused,
        "rate_bytes_per_s": wish.rate_bytes_per_s,
        "paused_by": wish.by,
        "paused_since_s": wish.since_s,
    }


def wish_from(fields: Fields) -> Wish:
    """Read a peer's wish from its STATUS; one of an older version has none."""
    if not fields.has("paused"):
        return Wish()
    rate = fields.number("rate_bytes_per_s")
    if rate > RATE_BYTES_PER_S_MAX:
        raise PeerError("STATUS: the rate limit is beyond all rates")
    return Wish(
        fields.flag("paused"), rate, fields.text("paused_by", 200), fields.number("paused_since_s")
    )


def order(volume: Volume, number: int, wish: Wish) -> None:
    """An operator's new wish: it holds from now on, and connected peers are told."""
    before, volume.pacing.own = volume.pacing.own, wish
    name, who = volume.name, operator(wish.by)
    if wish.paused != before.paused:
        code = "RESYNC_PAUSED" if wish.paused else "RESYNC_RESUMED"
        text = f"{who} {'paused' if wish.paused else 'resumed'} the copies of {name}"
        volume.tell(code, text, by=wish.by)
    elif wish.rate_bytes_per_s != before.rate_bytes_per_s:
        limit = f"{wish.rate_bytes_per_s} bytes/s" if wish.rate_bytes_per_s else "no limit"
        text = f"{who} set the rate limit of the copies of {name}: {limit}"
        volume.tell("RESYNC_LIMITED", text, by=wish.by, rate_bytes_per_s=wish.rate_bytes_per_s)
    else:
        text = "nothing changes: that was ordered before"
    volume.outbox.changed = True
    volume.send_status()
    volume.answer(number, granted(text + _stricter(volume)))


def _stricter(volume: Volume) -> str:
    """Say what the other side orders that is stricter than this side's wish."""
    own, said = volume.pacing.own, ""
    for session in volume.sessions.values():
        theirs = session.their_wish
        if theirs.paused and not own.paused:
            said += f"; {session.name} still pauses them"
        limit = volume.pacing.limit(theirs)
        if limit != own.rate_bytes_per_s:
            said += f"; {session.name} limits them to {limit} bytes/s"
    return said
