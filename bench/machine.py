"""The facts of the machine that belong to every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from bench.results import Machine


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name from /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        label, _, value = line.partition(":")
        if label.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def filesystem_of(folder: Path, mounts: str) -> str:
    """Return the type of the filesystem that a folder lies on, from /proc/mounts."""
    best, found = "", "unknown"
    path = str(folder.resolve())
    for line in mounts.splitlines():
        _device, point, kind, *_ = line.split()
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, kind
    return found


def facts(folder: Path) -> Machine:
    """Look at this machine; `folder` is where the backing files are."""
    done = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False)
    return Machine(
        cpu_model=cpu_model(Path("/proc/cpuinfo").read_text()),
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        fio=done.stdout.strip(),
        filesystem=filesystem_of(folder, Path("/proc/mounts").read_text()),
        load_average=round(os.getloadavg()[0], 2),
    )
