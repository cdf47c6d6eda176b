"""Certificates for a server that is measured over TLS, and the URI under which fio reaches it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.processes import ContenderBroke
from tests.certificates import server_folder

_NODE = "server"


def server_certificates(folder: Path) -> Path:
    """Make an authority in `folder`; return the folder with a server's certificate of it.

    Raises:
        ContenderBroke: `replctl tls init` did not do it.
    """
    command = [sys.executable, "-m", "repl.cli.main", "tls", "init", str(folder), _NODE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ContenderBroke(done.stderr)
    return server_folder(folder, _NODE)


def unverified(uri: str) -> str:
    """Return the URI for TLS without certificates of the client.

    fio's engine cannot be told where they are; what is encrypted is the same without.
    """
    return f"nbds{uri.removeprefix('nbd')}&tls-verify-peer=false"
