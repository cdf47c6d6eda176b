"""The kernel's table of mounts, with the names that people give."""

from __future__ import annotations

from pathlib import Path

from repl.attach.mounts import at, of_device, parse_mounts

TABLE = (
    rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 7:3 / /mnt/with\040space\011and\134tab rw,relatime - ext4 /dev/loop3 rw
41 22 0:44 / /mnt/b rw - btrfs /dev/loop4 rw,space_cache
42 22 7:5 / /mnt/b rw master:2 propagate_from:1 - xfs /dev/loop5 rw
garbage
43 22 7:3 /sub /mnt/sub rw - ext4 /dev/root rw
44 22 7:6 / /mnt/"""
    + b"\xff"
    + b""" rw - ext4 /dev/loop6 rw
"""
)


def test_escaped_names_are_read_back() -> None:
    mounts = parse_mounts(TABLE)
    assert [mount.point for mount in mounts] == [
        "/",
        "/mnt/with space\tand\\tab",
        "/mnt/b",
        "/mnt/b",
        "/mnt/sub",
        "/mnt/\udcff",
    ]


def test_last_mount_on_a_point_is_the_one_seen() -> None:
    found = at(parse_mounts(TABLE), "/mnt/b")
    assert found is not None and (found.kind, found.source) == ("xfs", "/dev/loop5")
    assert at(parse_mounts(TABLE), "/mnt") is None


def test_device_is_found_by_name_and_by_number() -> None:
    assert [mount.point for mount in of_device(parse_mounts(TABLE), "/dev/loop4")] == ["/mnt/b"]
    number = "1:3"
    table = b"50 22 1:3 / /null rw - ext4 other rw\n"
    assert [mount.device for mount in of_device(parse_mounts(table), "/dev/null")] == [number]


def test_own_table_can_be_parsed() -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    assert at(mounts, "/proc") is not None
