"""Chooses which of the inputs that a fuzzer collected are worth a place in the repository.

The smallest ones that together take every branch that any of them takes, measured by coverage.py,
up to a size. Run by hand after a long run of the fuzzer, or when a target has changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from coverage import Coverage

from tests.fuzz.targets import CORPUS, TARGETS

#: Of one target.
KEPT_BYTES_MAX: Final = 50_000
#: The smallest inputs only are looked at.
LOOKED_AT_MAX: Final = 1500

Arc = tuple[str, int, int]


def keep(name: str, working: Path) -> str:
    """Replace the target's corpus by the best of it and of `working`; returns what was done."""
    target = TARGETS[name]
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for each in (folder, working) if each.exists() for path in each.iterdir()]
    found = {path.read_bytes() for path in paths if path.is_file()}
    inputs = sorted(found | set(target.seeds()), key=_by_size)
    taken: set[Arc] = set()
    kept: list[bytes] = []
    size = 0
    for data in inputs[:LOOKED_AT_MAX]:
        arcs = _arcs(name, data)
        if arcs - taken and size + len(data) <= KEPT_BYTES_MAX:
            taken |= arcs
            size += len(data)
            kept.append(data)
    for path in target.kept():
        if path.parent == folder:
            path.unlink()
    for data in kept:
        (folder / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
    return f"{len(kept)} of {len(inputs)} inputs, {size:,} bytes, {len(taken):,} branches"


def _by_size(data: bytes) -> tuple[int, bytes]:
    return len(data), data


def _arcs(name: str, data: bytes) -> set[Arc]:
    """The branches that one input takes in what the target instruments."""
    target = TARGETS[name]
    measured = Coverage(
        data_file=None, branch=True, config_file=False, source_pkgs=list(target.instrumented)
    )
    measured.start()
    try:
        target.run(data)
    finally:
        measured.stop()
    found = measured.get_data()
    return {
        (Path(file).name, *arc) for file in found.measured_files() for arc in found.arcs(file) or ()
    }
