"""Every limit of the server: its name, its default, its bounds, and what it bounds.

One flat set, so that the command line, a configuration file and the documentation name the same
things. The last part of a name is its unit: `_s` seconds, `_bytes` bytes, else a count. A time of
0 means "never" where its text says so. Nothing here enforces anything.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nbdserver.protocol import PAYLOAD_BYTES_MAX

_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class LimitInvalid(ValueError):
    """A limit that does not exist, or a value that it cannot have; the text is a sentence."""


def _limit(default: float, low: float, high: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "text": text})


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may have, one each or all together. Raises LimitInvalid."""

    # All clients of a server.
    clients: int = _limit(256, 1, 65536, "clients that are served at once")
    handshakes: int = _limit(128, 1, 65536, "clients in the middle of their handshake at once")
    held: int = _limit(256, 1, 65536, "clients that wait until their export may be served")
    total_bytes: int = _limit(
        256 << 20, 64 << 20, 1 << 40, "payloads, reads and unsent replies of all clients together"
    )
    tls_proxies: int = _limit(2, 1, 64, "processes that encrypt, each for its share of clients")
    # One client's handshake.
    handshake_deadline_s: float = _limit(10.0, 0.05, 3600, "for a handshake, its waits aside")
    options: int = _limit(1000, 8, 1_000_000, "options in one handshake")
    option_bytes: int = _limit(64 << 10, 8 << 10, 16 << 20, "length of one option's data")
    waiting_bytes: int = _limit(
        256 << 10, 512, 16 << 20, "bytes sent ahead while the client waits for an answer"
    )
    # One client in transmission.
    in_flight_requests: int = _limit(128, 1, 65536, "requests of one client in flight")
    in_flight_bytes: int = _limit(
        64 << 20, PAYLOAD_BYTES_MAX, 1 << 40, "payloads and reads of one client in flight"
    )
    unsent_bytes: int = _limit(
        16 << 20, 1, 1 << 40, "replies that a client does not take before it is not read further"
    )
    buffer_bytes: int = _limit(
        128 << 20, 2 * PAYLOAD_BYTES_MAX, 1 << 40, "receive buffers of one client"
    )
    spare_buffer_bytes: int = _limit(
        4 << 20, 0, 1 << 30, "receive buffers that one client keeps for its next requests"
    )
    # One client's silence.
    payload_stall_s: float = _limit(
        30.0, 0.01, 86400, "without a byte of a payload that holds a large buffer"
    )
    reply_stall_s: float = _limit(
        30.0, 0.01, 86400, "without taking a reply while others wait for the bytes it holds"
    )
    idle_s: float = _limit(0.0, 0, 30 * 86400, "without any request; 0: never")
    half_open_s: float = _limit(
        60.0, 0, 86400, "until a TCP client that acknowledges nothing is gone; 0: the kernel's time"
    )
    leave_s: float = _limit(
        5.0, 0.01, 3600, "for a client that leaves to take its answers while a new one waits"
    )

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            check(each.name, getattr(self, each.name))


#: What can be met in a handshake, and in transmission, under the names that their counters have.
IN_HANDSHAKE: Final = (
    *("clients", "handshakes", "held"),
    *("handshake_deadline_s", "options", "option_bytes", "waiting_bytes"),
)
IN_TRANSMISSION: Final = (
    *("total_bytes", "in_flight_requests", "in_flight_bytes", "unsent_bytes", "buffer_bytes"),
    *("payload_stall_s", "reply_stall_s", "idle_s", "half_open_s", "leave_s"),
)

_FIELDS: Final = {each.name: each for each in dataclasses.fields(Limits)}


def names() -> Iterable[str]:
    """Every limit's name, in the order in which they are documented."""
    return _FIELDS.keys()


def is_count(name: str) -> bool:
    """Whether the limit is a whole number (a count or bytes) and not a time."""
    return not name.endswith("_s")


def text_of(name: str) -> str:
    """What the limit bounds, as half a sentence."""
    text: str = _FIELDS[name].metadata["text"]
    return text


def check(name: str, value: float) -> None:
    """Raise LimitInvalid unless the limit `name` may have this value."""
    bounds = _known(name).metadata
    low, high = bounds["low"], bounds["high"]
    if not low <= value <= high:
        raise LimitInvalid(f"{name} must be {_shown(name, low)} to {_shown(name, high)}")


def parse(name: str, text: str) -> float:
    """The value that `text` gives the limit `name`: "16", "2.5", "64MiB". Raises LimitInvalid."""
    _known(name)
    form, pattern = "a whole number", r"([0-9]+)()"
    if name.endswith("_bytes"):
        form, pattern = 'bytes, like "64MiB"', r"([0-9]+) *(KiB|MiB|GiB|)"
    elif not is_count(name):
        form, pattern = "seconds", r"([0-9]+(?:\.[0-9]+)?)()"
    found = re.fullmatch(pattern, text.strip(), re.ASCII)
    if found is None:
        raise LimitInvalid(f"{name} must be {form}, not {text!r}")
    number = int(found[1]) if is_count(name) else float(found[1])
    value = number * _UNITS[found[2]]
    check(name, value)
    return value


def make(values: Mapping[str, float]) -> Limits:
    """The limits with these values and defaults for the rest. Raises LimitInvalid."""
    for name in values:
        _known(name)
    return Limits(**values)  # type: ignore[arg-type]


def table() -> str:
    """All limits as lines of text: name, default, what it bounds."""
    default = Limits()
    rows = [(name, _shown(name, getattr(default, name)), text_of(name)) for name in _FIELDS]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:{width}}  {value:>8}  {text}" for name, value, text in rows)


def _known(name: str) -> dataclasses.Field[Any]:
    found = _FIELDS.get(name)
    if found is None:
        raise LimitInvalid(f"there is no limit {name!r}; there are: {', '.join(_FIELDS)}")
    return found


def _shown(name: str, value: float) -> str:
    if not is_count(name):
        return f"{value:g} s"
    if name.endswith("_bytes"):
        for unit, size in reversed(_UNITS.items()):
            if value >= size and value % size == 0:
                return f"{value / size:g} {unit}".rstrip()
    return f"{value:g}" if value < 1e6 else str(int(value))
