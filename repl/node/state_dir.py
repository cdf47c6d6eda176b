"""The state directory belongs to one daemon at a time: made, checked and locked here.

Owns `STATE_DIR/repld.lock`, whose lock (flock) ends with the process, so that nothing is stale
after a crash. It must touch nothing else: a second daemon leaves all as it was.
"""

from __future__ import annotations

import errno
import fcntl
import os

from repl.errors import ConfigInvalid, PermissionRefused, Refused, ReplError

LOCK_NAME = "repld.lock"
MODE = 0o700


class StateDirLock:
    """The exclusive right to a state directory, from construction to `close`."""

    def __init__(self, path: str) -> None:
        """Make the directory if absent and lock it.

        Raises Refused (STATE_DIR_IN_USE), PermissionRefused or ConfigInvalid.
        """
        lock_path = os.path.join(path, LOCK_NAME)
        try:
            os.makedirs(path, mode=MODE, exist_ok=True)
            self._fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failure(error, path) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Refused(
                f"the state directory {path} is in use",
                f"another repld, process {holder or 'unknown'}, has locked {lock_path}",
                "stop it, or give this node its own [node] state_dir",
                code="STATE_DIR_IN_USE",
            ) from None
        # For the message above only; the lock is what counts, so a short write does no harm.
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give the directory back."""
        os.close(self._fd)


def _failure(error: OSError, path: str) -> ReplError:
    what = f"the state directory {path} cannot be used"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionRefused(
            what, f"{error.strerror}: {error.filename}", f"make {path} writable for this user"
        )
    return ConfigInvalid(
        what, f"{error.strerror}: {error.filename}", "write another path in [node] state_dir"
    )
