"""TCP addresses as configurations write them: how they are read, and when two of them meet.

Pure: decides by the text alone and never resolves a name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_WILDCARDS = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when nothing sent there can leave this machine; a name is trusted only if known."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """True when listening there means listening on every address of the machine."""
        return self.host in _WILDCARDS

    def reaches(self, listener: Address) -> bool:
        """Return whether dialing this address ends, by its text alone, at `listener`."""
        if self.port != listener.port:
            return False
        if listener.is_wildcard or self.is_wildcard:
            return self.is_loopback or self.is_wildcard
        return _canonical_host(self.host) == _canonical_host(listener.host)

    def collides(self, other: Address) -> bool:
        """Return whether one machine cannot listen on both."""
        same_host = _canonical_host(self.host) == _canonical_host(other.host)
        return self.port == other.port and (same_host or self.is_wildcard or other.is_wildcard)


def parse_address(text: str) -> Address:
    """Return the address that "host:port" or "[v6]:port" means; ValueError carries a sentence."""
    host, colon, port = text.rpartition(":")
    form = f'{text!r} is not an address; write it like "10.0.0.2:7790" or "[fd00::2]:7790"'
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII):
        raise ValueError(form)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as failure:
            raise ValueError(form) from failure
    elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", host, re.ASCII):
        raise ValueError(form)
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as failure:
            raise ValueError(form) from failure
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: the port must be 1 to 65535")
    return Address(host, int(port))


def _canonical_host(host: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        return host.lower()
