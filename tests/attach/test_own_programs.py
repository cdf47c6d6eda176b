"""A program of ours that root starts loads nothing from the folder in which it is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repl.attach import kernel_nbd
from repl.attach.record import Folder
from repl.cli.attach import _start_guardian
from repl.errors import ReplError

SHADOWED = ("uvloop.py", "json.py", "repl/__init__.py", "nbdserver/__init__.py", "argparse.py")


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder of modules that shadow ours; return the file that tells of their loading."""
    folder, told = tmp_path / "anybody's", tmp_path / "loaded"
    for name in SHADOWED:
        module = folder / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"open({str(told)!r}, 'a').write(__name__)")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return told


def test_guardian_is_what_is_installed_here(loaded: Path, tmp_path: Path) -> None:
    Folder(tmp_path, "r0").make()
    order: dict[str, object] = {"run": str(tmp_path), "volume": "r0", "way": ""}
    order |= {"address": str(tmp_path / "absent"), "made_by": "attach", "dead_after_s": 1}
    with _start_guardian(tmp_path / "control.sock", order) as guardian:
        assert guardian.stdout is not None
        line = guardian.stdout.readline()
    assert not loaded.exists(), loaded.read_text()
    assert "error" in json.loads(line)


def test_keeper_is_what_is_installed_here(
    loaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_nbd, "RUNTIME_DIR", tmp_path / "kernel-nbd")
    monkeypatch.setattr(kernel_nbd, "available", lambda: (True, ""))
    for act in (
        lambda: kernel_nbd.attach("127.0.0.1:1", "r0"),
        lambda: kernel_nbd.resume(Path("/dev/nbd4711")),
    ):
        with pytest.raises(ReplError) as failed:
            act()
        assert not loaded.exists(), loaded.read_text()
        assert "ended, or hangs" not in failed.value.what, failed.value.why
