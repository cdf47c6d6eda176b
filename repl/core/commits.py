"""Group commit of metadata, and syncs of the backing: what must be durable before what.

Changes to facts and maps take effect in memory at once; whoever needs them durable asks here and is
called back. One commit and one sync are under way at a time; everything asked meanwhile shares the
next one. A callback runs only after a commit (or sync) that began *after* it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from repl.core.blockmap import BlockMap
from repl.core.facts import Facts, Maps
from repl.core.outbox import Commit, MapName, MapPage

Then = Callable[[], None]


class Commits:
    """Turns requests for durability into numbered commits."""

    def __init__(
        self, stored: Facts, maps: Maps, tell: Callable[[Facts, Facts], None] = lambda *_: None
    ) -> None:
        #: The facts of the last durable commit: what may be given to others (G3).
        self.stored = stored
        #: The id of its current generation, which every frame carries; 0 while it is fresh.
        self.generation_id = _generation_id(stored)
        #: Told the facts before and after a commit, before anybody who waits for it.
        self._tell = tell
        self._maps = maps
        self._number = 0
        self._in_flight: Commit | None = None
        self._carried: list[Then] = []
        self._waiting: list[Then] = []
        self._wanted = False
        self._with_maps = False
        self._emptied: list[tuple[MapName, str]] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing is asked for."""
        return self._in_flight is None and not self._wanted

    def request(self, then: Then | None = None, *, with_maps: bool = False) -> None:
        """Ask for a commit of all that is in memory now; `with_maps` includes the dirty maps."""
        self._wanted = True
        self._with_maps |= with_maps
        if then is not None:
            self._waiting.append(then)

    def when_stored(self, facts: Facts, then: Then) -> None:
        """Call `then` once the facts in memory are durable: at once if they are already."""
        if facts is self.stored and not self._wanted:
            then()
        else:
            self.request(then)

    def empty(self, name: MapName, peer: str = "") -> None:
        """Clear a whole map with the next commit (one superblock write, FORMAT.md)."""
        bitmap = self._bitmap(name, peer)
        bitmap.clear_all()
        if (name, peer) not in self._emptied:
            self._emptied.append((name, peer))
        self._wanted = True

    def take(self, facts: Facts) -> Commit | None:
        """Build the next commit if one is wanted and none is under way."""
        if not self._wanted or self._in_flight is not None:
            return None
        self._number += 1
        commit = Commit(self._number)
        if facts is not self.stored or self._emptied:
            commit.facts = facts
        commit.emptied = self._emptied
        if self._with_maps or self._emptied:
            self._take_pages(commit, MapName.REMAINING, "")
            for peer in self._maps.dirty:
                self._take_pages(commit, MapName.DIRTY, peer)
        self._take_pages(commit, MapName.INTENTS, "")
        self._in_flight = commit
        self._carried, self._waiting = self._waiting, []
        self._emptied = []
        self._wanted = self._with_maps = False
        return commit

    def done(self, number: int) -> None:
        """The commit is durable: call everyone who waited for it."""
        commit = self._in_flight
        assert commit is not None and commit.number == number, "commits end in their order"
        self._in_flight = None
        if commit.facts is not None:
            before, self.stored = self.stored, commit.facts
            self.generation_id = _generation_id(self.stored)
            self._tell(before, self.stored)
        carried, self._carried = self._carried, []
        for then in carried:
            then()

    def _take_pages(self, commit: Commit, name: MapName, peer: str) -> None:
        bitmap = self._bitmap(name, peer)
        changed = bitmap.take_changed()
        if (name, peer) in commit.emptied:
            occupied = set(bitmap.set_pages())
            changed = [page_no for page_no in changed if page_no in occupied]
        commit.pages += [MapPage(name, peer, page_no, bitmap.page(page_no)) for page_no in changed]

    def _bitmap(self, name: MapName, peer: str) -> BlockMap:
        if name is MapName.INTENTS:
            return self._maps.intents
        return self._maps.remaining if name is MapName.REMAINING else self._maps.dirty[peer]


def _generation_id(facts: Facts) -> int:
    return facts.generation.id if facts.lineage else 0


class Syncs:
    """Turns requests for a durable backing into numbered syncs."""

    def __init__(self) -> None:
        self._number = 0
        self._running = False
        self._carried: list[Then] = []
        self._waiting: list[Then] = []
        #: Bytes written since the last sync began.
        self.unsynced_bytes = 0

    def request(self, then: Then) -> None:
        """Call `then` when everything written to the backing before now is durable."""
        self._waiting.append(then)

    def request_for_nobody(self) -> None:
        """Sync what was written until now, so that little is unsynced."""
        self._waiting.append(_nobody_waits)

    def take(self) -> int:
        """Return the number of a sync to start now, or 0."""
        if self._running or not self._waiting:
            return 0
        self._running = True
        self._number += 1
        self._carried, self._waiting = self._waiting, []
        self.unsynced_bytes = 0
        return self._number

    def done(self, number: int) -> None:
        """The sync succeeded. A failed one never comes here: it fails the copy."""
        assert self._running and number == self._number, "syncs end in their order"
        self._running = False
        carried, self._carried = self._carried, []
        for then in carried:
            then()


def _nobody_waits() -> None:
    """Called at the end of a background sync. No lambda: that would be made each turn."""
