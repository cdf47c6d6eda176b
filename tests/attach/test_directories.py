"""Directories that cannot be looked at are refused in words, before anything is done."""

from __future__ import annotations

import errno
import os

import pytest

from repl.errors import Refused
from tests.attach.stage import Stage


def unlooked(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_name_that_is_too_long_is_refused(stage: Stage) -> None:
    error = stage.refused("MOUNT_DIRECTORY", directory=f"/{'n' * 300}", promote=True)
    assert error.why == "File name too long" and error.next_step == "choose a shorter one"
    assert stage.diary == []


def test_directory_below_a_file_does_not_exist(stage: Stage) -> None:
    (stage.directory / "file").touch()
    below = stage.directory / "file" / "below"
    error = stage.refused("MOUNT_DIRECTORY", directory=str(below), promote=True)
    assert "does not exist" in error.what


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("call", ["stat", "listdir"])
def test_directory_that_cannot_be_looked_at_is_not_mounted_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A filesystem below it whose server is gone, or that belongs to another user."""
    was = getattr(os, call)

    def fail(path: object, **options: object) -> object:
        if path == str(stage.directory):
            raise unlooked(number)
        return was(path, **options)

    monkeypatch.setattr(os, call, fail)
    error = stage.refused("MOUNT_DIRECTORY", promote=True)
    assert error.why == os.strerror(number)
    assert f"ls -lad '{stage.directory}'" in error.next_step
    assert stage.diary == []


def test_directory_that_cannot_be_looked_at_is_not_unmounted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> str:
        raise unlooked(errno.ESTALE)

    stage.mounted()
    monkeypatch.setattr(os.path, "realpath", fail)
    with pytest.raises(Refused, match="cannot be looked at") as refused:
        stage.unmounting.umount("mnt")
    assert refused.value.code == "MOUNT_DIRECTORY"
    assert refused.value.why == os.strerror(errno.ESTALE)
    assert stage.diary == []
