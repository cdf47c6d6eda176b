"""Readiness and watchdog messages for systemd: one datagram to the socket that it names.

Owns the protocol of sd_notify(3), which is a few lines of text. It must never fail the daemon:
without `NOTIFY_SOCKET`, or when nobody listens there, nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(text: str) -> bool:
    """Send newline-separated assignments such as "READY=1"; return whether they were sent."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto(text.encode(), address)
        return True
    return False


def watchdog_interval_s() -> float | None:
    """Return how often "WATCHDOG=1" is due (half of what systemd allows); None: not asked for."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed_us) / 2e6 if allowed_us.isdecimal() and int(allowed_us) > 0 else None
