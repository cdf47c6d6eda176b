"""Who has to go when more clients are in their handshake than may be.

Pure: decides, closes nothing. Clients are grouped by where they come from: an address, of IPv6 the
network of 64 bits that one machine has for itself, of a Unix socket the process. Whoever comes from
where most of them come from makes way, the oldest first: so silent handshakes keep nobody from
elsewhere out, and a flood costs the flood's own. A newcomer whose origin is itself among those that
have most takes no place in the first `SHELTER_S` of a handshake, in which an honest client is
through; one that is older was left lying.
"""

from __future__ import annotations

import ipaddress
from typing import Final, Generic, TypeVar

#: For a handshake that goes on to end in; a slow one has longer, as long as nobody needs its place.
SHELTER_S: Final = 1.0

Member = TypeVar("Member")


class Crowd(Generic[Member]):
    """The members in their handshake; no more than `limit`, but for those who came back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: By origin: members and when they came. No origin is without members.
        self._origins: dict[str, dict[Member, float]] = {}
        self._origin_of: dict[Member, str] = {}

    def __len__(self) -> int:
        return len(self._origin_of)

    def enter(self, member: Member, origin: str, now_s: float) -> Member | None:
        """Take in a newcomer; who has to go for that, which may be the newcomer, or nobody."""
        self.come_back(member, origin, now_s)
        if len(self) <= self._limit:
            return None
        most = max(map(len, self._origins.values()))
        crowded = (members for members in self._origins.values() if len(members) == most)
        oldest = (min(members.items(), key=_came_s) for members in crowded)
        goes, came_s = min(oldest, key=_came_s)
        if len(self._origins[origin]) == most and now_s - came_s < SHELTER_S:
            goes = member
        self.leave(goes)
        return goes

    def come_back(self, member: Member, origin: str, now_s: float) -> None:
        """Take in one who is not to be turned away, whatever the number, if it is not in yet."""
        if member in self._origin_of:
            return
        self._origins.setdefault(origin, {})[member] = now_s
        self._origin_of[member] = origin

    def leave(self, member: Member) -> None:
        """It is not in its handshake any more. Nothing happens for one who was not."""
        origin = self._origin_of.pop(member, None)
        if origin is None:
            return
        members = self._origins[origin]
        del members[member]
        if not members:
            del self._origins[origin]


def _came_s(one: tuple[Member, float]) -> float:
    return one[1]


def origin_of(host: str) -> str:
    """The group of a client's numeric address; any other text is a group of its own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
