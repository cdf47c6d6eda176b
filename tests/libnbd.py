"""Finds Debian's libnbd binding (package python3-libnbd) from inside a virtual environment.

The binding is installed for the system's Python only. Putting the system's folder on `sys.path`
would make everything in it importable, and a package missing from our dependencies would go
unnoticed on machines that happen to have it. So exactly its two modules are loaded, by path, and
registered under their own names: afterwards `import nbd` works as usual.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")


class LibnbdMissing(ImportError):
    """The binding is not installed, or it was built for another version of Python."""


def load() -> Any:
    """Return the `nbd` module, importing it on first use. Raises `LibnbdMissing`."""
    if "nbd" in sys.modules:
        return sys.modules["nbd"]
    extensions = [SYSTEM_PACKAGES / f"libnbdmod{suffix}" for suffix in EXTENSION_SUFFIXES]
    extension = next((path for path in extensions if path.exists()), None)
    if extension is None:
        raise LibnbdMissing(
            f"no libnbd binding for Python {sys.version_info.major}.{sys.version_info.minor} in "
            f"{SYSTEM_PACKAGES}; install Debian's python3-libnbd and use the system's Python"
        )
    _load_one("libnbdmod", extension)
    return _load_one("nbd", SYSTEM_PACKAGES / "nbd.py")


def _load_one(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LibnbdMissing(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
