"""Taking a device away from whoever uses it, without waiting for the daemon or for them.

All its requests fail, what is mounted is unmounted lazily, and the device goes as soon as its last
user has. What was not written to it yet is lost, which is why it is done only where the device is
dead, or where an operator says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from repl.attach import mounts
from repl.attach.machine import Machine
from repl.attach.ways import Way

UMOUNT_TIMEOUT_S: Final = 5.0

_log = logging.getLogger("repl.attach")


def cut_off(way: Way, machine: Machine, device: Path) -> None:
    """Fail all requests of a device, take its mounts away, and name whoever still holds it."""
    mounted = mounts.of_device(machine.mounts(), str(device))
    holders = machine.holders([str(device), *(mount.point for mount in mounted)])
    way.cut_off(device)
    for mount in reversed(mounted):
        ran = machine.run("umount", "--lazy", mount.point, timeout_s=UMOUNT_TIMEOUT_S)
        if ran.status:
            _log.error("%s could not be unmounted: %s.", mount.point, ran.last_line)
        else:
            _log.warning("%s was unmounted; what was not yet written is lost.", mount.point)
    if holders:
        _log.warning("The device goes when these let go of it: %s.", ", ".join(holders[:8]))
