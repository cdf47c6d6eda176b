"""Certificates for tests, made as an operator makes them."""

from __future__ import annotations

from pathlib import Path

from repl.cli.main import main


def make_certificates(folder: Path, *names: str) -> Path:
    """Put an authority and NAME.crt, NAME.key for each name into `folder`; return it."""
    assert main(["tls", "init", str(folder), *names]) == 0
    return folder
