"""Writes things that must survive, and says of each, once it is safe, what it was.

Run as a process of its own, since it is killed, or blocked by a dying device, while it works:

    writer.py files FOLDER SEED COUNT      files of random size, each followed by fsync
    writer.py records URI SEED COUNT       records written over NBD with FUA (no filesystem)

After each it prints one line, `NAME SHA256`, which is the promise to be checked later. It ends with
status 0 after COUNT, or with 3 when the device fails under it, which the demonstration intends.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FILE_BYTES_MIN = 1 << 10
FILE_BYTES_MAX = 192 << 10
RECORD_BYTES = 64 << 10
#: Records of one seed begin here: seeds must not overwrite each other's.
RECORDS_PER_SEED = 512
DEVICE_FAILED = 3


def promise(name: str, data: bytes) -> None:
    print(name, hashlib.sha256(data).hexdigest(), flush=True)


def write_files(folder: Path, seed: int, count: int) -> None:
    """Write `count` files; a line is printed only after the file's fsync has returned."""
    generator = random.Random(seed)
    for number in range(count):
        name = f"{seed}-{number:05}"
        data = generator.randbytes(generator.randint(FILE_BYTES_MIN, FILE_BYTES_MAX))
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        promise(name, data)


def connect(uri: str) -> Any:
    """Return a libnbd handle that is connected to `uri`."""
    sys.path.insert(0, str(ROOT))
    from tests import libnbd

    handle = libnbd.load().NBD()
    handle.connect_uri(uri)
    return handle


def record_offset(name: str) -> int:
    """Return where on the volume the record of this name lies, in bytes."""
    seed, number = name.split("-")
    return (int(seed) * RECORDS_PER_SEED + int(number)) * RECORD_BYTES


def write_records(uri: str, seed: int, count: int) -> None:
    """Write `count` records; a line is printed only after the FUA write was answered."""
    assert count <= RECORDS_PER_SEED
    handle = connect(uri)
    generator = random.Random(seed)
    nbd = sys.modules["nbd"]
    for number in range(count):
        name = f"{seed}-{number:05}"
        data = generator.randbytes(RECORD_BYTES)
        try:
            handle.pwrite(data, record_offset(name), nbd.CMD_FLAG_FUA)
        except nbd.Error as error:
            raise OSError(str(error)) from error
        promise(name, data)
    handle.shutdown()


def main() -> int:
    kind, place, seed, count = sys.argv[1:]
    try:
        if kind == "files":
            write_files(Path(place), int(seed), int(count))
        else:
            write_records(place, int(seed), int(count))
    except OSError as error:
        print(f"the device failed: {error}", file=sys.stderr)
        return DEVICE_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
