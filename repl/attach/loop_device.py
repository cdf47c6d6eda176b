"""Loop devices that go away by themselves: made and bound in one step, with `autoclear` set.

losetup cannot do that: a device of its making stays behind when its maker is killed. One made here
exists exactly as long as somebody has it open, and its maker holds it open; so whatever kills the
maker, the kernel clears the device as soon as it is not mounted any more.

See loop(4) and linux/loop.h: LOOP_CTL_GET_FREE, LOOP_CONFIGURE (since Linux 5.8); and diskseq in
/sys/block, a number that no two media of one boot have (since Linux 5.15).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from repl.attach.processes import boot_id

CONTROL: Final = "/dev/loop-control"
_CTL_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_FLAG_AUTOCLEAR: Final = 4
#: The file is read and written past the page cache, which the filesystem on the device has already.
_FLAG_DIRECT_IO: Final = 16
#: struct loop_info64: device, inode, rdevice, offset, size limit, number, cipher type, length of
#: the key, flags, file name, cipher name, key, init[2].
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
#: struct loop_config: fd, block_size, info, reserved[8].
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64s")
#: Every way to attach shows the same sector size, so that a filesystem made on one node can be
#: mounted on the other.
SECTOR_BYTES: Final = 512
#: Another process may bind a free device first.
ATTEMPTS: Final = 64


def open_loop(file: Path) -> tuple[int, str]:
    """Bind a free loop device to `file`; return its open descriptor and its path. Raises OSError.

    Closing the descriptor gives the device back, at once or when its last other user is gone.
    """
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(ATTEMPTS):
                path = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
                descriptor = _bind(path, backing)
                if descriptor is not None:
                    return descriptor, path
        finally:
            os.close(control)
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "every free loop device is taken by others at once")


def _bind(path: str, backing: int) -> int | None:
    """Open the device and bind it; None if another process was quicker."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    flags = _FLAG_AUTOCLEAR | _FLAG_DIRECT_IO
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    try:
        fcntl.ioctl(descriptor, _CONFIGURE, _CONFIG.pack(backing, SECTOR_BYTES, info, b""))
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            return None
        raise
    return descriptor


def binding_of(device: str) -> str:
    """Return what names this binding of a loop device and no other; "" for one that is not bound.

    The path of its file would not do: it changes when the file's mount goes, and asking the device
    itself fails once nobody serves the file.
    """
    block = Path("/sys/block") / Path(device).name
    try:
        if not (block / "loop").is_dir():
            return ""
        return f"{boot_id()}:{(block / 'diskseq').read_text().strip()}"
    except OSError:
        return ""
