"""Is the volume still the one that this device last had, or may its content be another? Pure.

The lineage answers that (design §5): every change of primary makes a generation that names it, and
so does a promotion by which data was given up. What else happened on this node alone, also under
several generations, leaves a client's view intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generation:
    """What matters here of one entry: its id, its primary's node id, and whether data was lost."""

    id: int
    primary: int
    data_lost: bool = False


@dataclass(frozen=True, slots=True)
class Lineage:
    """A volume's lineage on this node, newest first."""

    node_id: int
    entries: Sequence[Generation]

    @property
    def current(self) -> int:
        """The id of the current generation; 0 while there is none."""
        return self.entries[0].id if self.entries else 0


def taken_over(lineage: Lineage, since: int) -> str:
    """Return the sentence that says why a device that last wrote under the generation `since` must
    not go on, or "" if it may."""
    for generation in lineage.entries:
        if generation.id == since:
            return ""
        if generation.primary != lineage.node_id:
            return "another node has been primary of the volume meanwhile"
        if generation.data_lost:
            return "data of the volume was given up meanwhile (--lose-data)"
    return "the volume's data is no longer the one that the device was attached to"
