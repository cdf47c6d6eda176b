"""Starting another program of ours: the very code that runs here, and nothing else's.

Uses nothing of the rest of the package, so that every part may use it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_program(module: str) -> tuple[str, ...]:
    """Return the command that runs a module of ours; it needs `own_environment`.

    -P: nothing is loaded from the folder that an operator is in: it may be anybody's, while the
    program is root's.
    """
    return (sys.executable, "-P", "-m", module)


def own_environment() -> dict[str, str]:
    """Return an environment in which the code is found where this process has found it."""
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
