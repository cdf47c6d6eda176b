"""What BLOCK_STATUS says of a replicated volume: the contexts, and where their answers come from.

| context | bits of a range's status | source |
|---|---|---|
| `base:allocation` | the protocol's: hole, zero | the backing's holes |
| `x-repl:out-of-sync:PEER` | 1: PEER may lack it | the core's dirty map for PEER |

A write that is in flight, or that a peer in sync was sent and has not confirmed, is in no dirty
map: it is not acknowledged yet, or will be marked when the peer is lost. Read-only throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from nbdserver.allocation import EXTENTS_MAX, HOLE, Allocation
from nbdserver.contexts import BASE_ALLOCATION
from nbdserver.protocol import NBD_CMD_FLAG_REQ_ONE, NBD_STATE_ZERO
from nbdserver.replies import Extents
from nbdserver.requests import StatusRequest
from repl.core.snapshot import out_of_sync
from repl.core.volume import Volume
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads

OUT_OF_SYNC_PREFIX = "x-repl:out-of-sync:"
STATE_OUT_OF_SYNC = 1
#: Extents of a dirty map in one answer. They are found inside the turn, in which a client may ask
#: as often as it may have requests in flight.
OUT_OF_SYNC_EXTENTS_MAX = 256


def contexts_of(peers: Iterable[str]) -> tuple[str, ...]:
    """The contexts of a volume with these peers."""
    return (BASE_ALLOCATION, *(OUT_OF_SYNC_PREFIX + peer for peer in peers))


def allocation_of(backing: Backing) -> Allocation:
    """The holes of a backing, as clients are told of them."""
    # Where space is kept, a hole is only a way to say "zeroes": writing there cannot fail.
    return Allocation(backing.next_data, 1, NBD_STATE_ZERO if backing.keeps_space else HOLE)


class BlockStatus:
    """Answers `StatusRequest`s; looking for holes happens in a thread."""

    def __init__(self, volume: Volume, allocation: Allocation, threads: IoThreads) -> None:
        self._volume = volume
        self._allocation = allocation
        self._threads = threads

    def answer(
        self, request: StatusRequest, done: Callable[[StatusRequest, dict[int, Extents]], None]
    ) -> None:
        """Call `done` with the extents by context id, now or when a thread has looked."""
        count_max = 1 if request.flags & NBD_CMD_FLAG_REQ_ONE else EXTENTS_MAX
        statuses: dict[int, Extents] = {}
        holes_asked = []
        for context, name in request.contexts.items():
            if name == BASE_ALLOCATION:
                holes_asked.append(context)
            else:
                peer = name.removeprefix(OUT_OF_SYNC_PREFIX)
                statuses[context] = self._behind(peer, request, count_max)
        if not holes_asked:
            done(request, statuses)
            return

        def looked(extents: Extents | None, error: Exception | None) -> None:
            # "Data" is always a safe answer; the disk's error belongs to whoever reads there.
            found = extents if error is None and extents else [(request.length, 0)]
            done(request, statuses | dict.fromkeys(holes_asked, found))

        self._threads.run(
            self._allocation.extents, request.offset, request.length, count_max, done=looked
        )

    def _behind(
        self, peer: str, request: StatusRequest, count_max: int
    ) -> Sequence[tuple[int, int]]:
        if peer not in self._volume.sessions:
            # Negotiated before the peer was taken out of the configuration: nothing is known.
            return [(request.length, STATE_OUT_OF_SYNC)]
        extents = out_of_sync(self._volume, peer).extents(request.offset, request.length)
        return [
            (length, STATE_OUT_OF_SYNC if behind else 0)
            for length, behind in islice(extents, min(count_max, OUT_OF_SYNC_EXTENTS_MAX))
        ]
