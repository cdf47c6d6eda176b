"""Events on disk: read back after any kind of end, bounded, and never in anybody's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repl.node.event_file import FILE_NAME, OLDER_NAME, SKIPPED_NUMBERS, WAITING_MAX, EventFile


def event(number: int, code: str = "PEER_SLOW", **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "time_s": 1.5,
        "volume": "r0",
        "code": code,
        "severity": "warning",
        "text": f"event {number}",
        "fields": fields,
    }


def stored(folder: Path, *events: dict[str, Any], **options: Any) -> None:
    file = EventFile(str(folder), **options)
    file.start()
    for one in events:
        file.keep(one)
    file.close()
    assert file.lost == 0


def test_nothing_is_stored_at_first(tmp_path: Path) -> None:
    assert EventFile(str(tmp_path)).load(10) == ([], 0)


def test_what_was_stored_is_read_back_in_order(tmp_path: Path) -> None:
    stored(tmp_path, event(1), event(2, peer="beta"), event(3, "DAEMON_STOPPED"))
    assert EventFile(str(tmp_path)).load(10) == (
        [event(1), event(2, peer="beta"), event(3, "DAEMON_STOPPED")],
        3,
    )


def test_after_an_unclean_stop_no_number_is_given_twice(tmp_path: Path) -> None:
    stored(tmp_path, event(1), event(2))
    _, last = EventFile(str(tmp_path)).load(10)
    assert last == 2 + SKIPPED_NUMBERS


def test_only_the_newest_are_read_back(tmp_path: Path) -> None:
    stored(tmp_path, *(event(number) for number in range(1, 31)))
    events, _ = EventFile(str(tmp_path)).load(10)
    assert [one["number"] for one in events] == list(range(21, 31))


@pytest.mark.parametrize(
    "tail",
    [
        b'{"number": 3, "time_s": 1.5, "vol',
        b"\x00" * 4096,
        b"\xff\xfe\xfd\n",
        b"[]\n3\nnull\n",
        b'{"number": 3}\n',
        json.dumps(event(3) | {"code": "FROM_THE_FUTURE"}).encode() + b"\n",
        json.dumps(event(3) | {"number": True}).encode() + b"\n",
        json.dumps(event(2)).encode() + b"\n",
        json.dumps(event(1 << 70)).encode() + b"\n",
    ],
)
def test_a_torn_or_strange_line_is_passed_over_and_written_behind(
    tmp_path: Path, tail: bytes
) -> None:
    stored(tmp_path, event(1), event(2))
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(tail)
    assert [one["number"] for one in EventFile(str(tmp_path)).load(10)[0]] == [1, 2]
    stored(tmp_path, event(2000))
    assert [one["number"] for one in EventFile(str(tmp_path)).load(10)[0]] == [1, 2, 2000]


def test_files_stay_bounded_and_the_older_one_is_read_too(tmp_path: Path) -> None:
    for number in range(1, 101):
        stored(tmp_path, event(number), file_bytes_max=2000)
    sizes = [(tmp_path / name).stat().st_size for name in (FILE_NAME, OLDER_NAME)]
    assert max(sizes) < 2500
    events, _ = EventFile(str(tmp_path)).load(1000)
    numbers = [one["number"] for one in events]
    assert numbers == list(range(numbers[0], 101)) and len(numbers) > 10


def test_a_disk_that_fails_costs_events_and_nothing_else(tmp_path: Path) -> None:
    file = EventFile(str(tmp_path / "missing"))
    file.start()
    file.keep(event(1))
    file.close()
    assert file.lost == 1


def test_a_disk_that_hangs_delays_nobody(tmp_path: Path) -> None:
    file = EventFile(str(tmp_path))
    # Its thread was never started: nothing is ever taken from the queue.
    for number in range(1, WAITING_MAX + 11):
        file.keep(event(number))
    assert file.lost == 10
    file.close()
