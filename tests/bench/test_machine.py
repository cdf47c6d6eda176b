"""The machine's facts, read from texts of /proc."""

from __future__ import annotations

from pathlib import Path

from bench.machine import cpu_model, filesystem_of

MOUNTS = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/deep xfs rw 0 0\n"


def test_processor_is_named_as_the_kernel_does() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: A Fast One\n") == "A Fast One"


def test_filesystem_is_that_of_the_deepest_mount() -> None:
    assert filesystem_of(Path("/nowhere/at/all"), MOUNTS) == "ext4"
    assert filesystem_of(Path("/tmp/x"), MOUNTS) == "tmpfs"
    assert filesystem_of(Path("/tmp/deep/x"), MOUNTS) == "xfs"
    assert filesystem_of(Path("/tmpfoo"), MOUNTS) == "ext4"
