"""The directory that a command was given: looked at, and refused in words where that fails.

A path may lead through a filesystem whose server is gone, or to what even root may not look at.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat

from repl.attach import mounts
from repl.attach.machine import Machine
from repl.errors import Refused


def real_path(given: str) -> str:
    """Return the path without symbolic links. Raises Refused (MOUNT_DIRECTORY)."""
    try:
        return os.path.realpath(given)
    except OSError as error:
        raise _not_looked_at(f"{given!r} cannot be looked at.", given, error) from error


def empty_directory(machine: Machine, given: str) -> str:
    """Return the real path of a directory to mount on. Raises Refused (MOUNT_DIRECTORY)."""
    quoted = shlex.quote(given)
    try:
        real, found = os.path.realpath(given), os.stat(given)
        if not stat.S_ISDIR(found.st_mode):
            raise _bad(given, "is not a directory", "choose another path")
        if mounts.at(machine.mounts(), real) is not None:
            raise _bad(given, "has something mounted on it", f"findmnt {quoted}")
        if os.listdir(given):
            raise _bad(given, "is not empty; what is in it would be hidden", f"ls -A {quoted}")
    except (FileNotFoundError, NotADirectoryError):
        raise _bad(given, "does not exist", f"mkdir -p {quoted}   or choose another one") from None
    except OSError as error:
        what = f"Nothing can be mounted on {given!r}: it cannot be looked at."
        raise _not_looked_at(what, given, error) from error
    return real


def _not_looked_at(what: str, given: str, error: OSError) -> Refused:
    next_step = f"see for yourself:  ls -lad {shlex.quote(given)}   or choose another one"
    if error.errno == errno.ENAMETOOLONG:
        next_step = "choose a shorter one"
    return Refused(what, error.strerror or str(error), next_step, code="MOUNT_DIRECTORY")


def _bad(given: str, what: str, next_step: str) -> Refused:
    return Refused(
        f"Nothing can be mounted on {given!r}: it {what}.",
        "a volume is mounted on an empty directory of its own",
        next_step,
        code="MOUNT_DIRECTORY",
    )
