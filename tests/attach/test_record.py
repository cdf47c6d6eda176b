"""The record of what is attached survives crashes, odd names and damaged files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record, folders
from repl.errors import DaemonUnreachable, Refused, ReplError


def record(volume: str = "r0") -> Record:
    return Record(volume, "nbdfuse", ProcessId.of(os.getpid()), "mount", Phase.ATTACHING)


def test_saved_record_is_loaded_as_it_was(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "r0")
    folder.make()
    assert folder.load() is None
    first = record()
    folder.save(first)
    assert folder.load() == first
    second = replace(
        first, phase=Phase.ATTACHED, device="/dev/loop9", mark="m", program=first.guardian
    )
    folder.save(second)
    assert folder.load() == second
    assert (folder.path / "guardian.pid").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"volume": "r0"}', "null"])
def test_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    folder = Folder(tmp_path, "r0")
    folder.make()
    (folder.path / "record.json").write_text(text)
    assert folder.load() is None


def test_removed_folder_leaves_only_the_log(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "r0")
    folder.make()
    folder.save(record())
    (folder.path / "fuse").mkdir()
    folder.relay_socket.touch()
    folder.log_path.write_text("first\nlast\n")
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
    assert folder.last_words() == "last"
    assert Folder(tmp_path, "r1").last_words() == ""


def test_volumes_with_odd_names_do_not_meet(tmp_path: Path) -> None:
    names = ["r0", "r0.json", "r0.lock", "record.json"]
    for name in names:
        Folder(tmp_path, name).make()
        Folder(tmp_path, name).save(record(name))
        with Folder(tmp_path, name).locked():
            pass
    assert [folder.volume for folder in folders(tmp_path)] == sorted(names)
    Folder(tmp_path, "r0").remove()
    assert [folder.volume for folder in folders(tmp_path)] == sorted(names)[1:]
    assert folders(tmp_path / "nowhere") == []


def test_second_command_is_refused_while_the_first_works(tmp_path: Path) -> None:
    with Folder(tmp_path, "r0").locked():
        with pytest.raises(Refused, match="attached, detached") as refused:
            Folder(tmp_path, "r0").locked().__enter__()
        assert refused.value.code == "ATTACH_BUSY"
        with Folder(tmp_path, "r1").locked():
            pass
    with Folder(tmp_path, "r0").locked():
        pass


def test_folder_of_the_control_socket_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable):
        Folder(tmp_path / "mistyped", "r0").locked().__enter__()
    assert list(tmp_path.iterdir()) == []


def test_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "attached").touch()
    with pytest.raises(ReplError, match="cannot be locked") as failed:
        Folder(tmp_path, "r0").locked().__enter__()
    assert failed.value.code == "ATTACH_FAILED"


def test_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    with pytest.raises(Refused, match="too long") as refused:
        Folder(deep, "v" * 60).make()
    assert refused.value.code == "ATTACH_IMPOSSIBLE"
    assert not deep.exists()
