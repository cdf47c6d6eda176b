"""The keeper's process: its record, its arguments, and what it reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from repl.attach import keeper
from repl.attach.keeper import Record
from repl.errors import NoSuchThing, Refused


def test_record_belongs_to_one_keeper_at_a_time(tmp_path: Path) -> None:
    record, other = Record(3, tmp_path), Record(3, tmp_path)
    assert record.keeper_pid() is None
    assert record.lock()
    record.write({"pid": os.getpid(), "export": "r0"})
    assert not other.lock()
    assert other.keeper_pid() == os.getpid()
    assert other.read() == {"pid": os.getpid(), "export": "r0"}
    record.write({"pid": 1})
    assert other.read() == {"pid": 1}


def test_record_of_a_dead_keeper_can_be_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "nbd0.json"
    path.write_text(json.dumps({"pid": 4_000_000, "export": "r0"}))
    record = Record(0, tmp_path)
    assert record.keeper_pid() is None
    assert record.lock()
    assert record.read()["export"] == "r0"
    record.remove()
    assert not path.exists()


@pytest.mark.parametrize(("device", "index"), [("/dev/nbd0", 0), ("/dev/nbd15", 15)])
def test_device_is_known_by_its_number(device: str, index: int) -> None:
    assert keeper.device_index(Path(device)) == index


@pytest.mark.parametrize("device", ["/dev/sda", "/dev/nbd", "/dev/nbd1p2", "nbd1", "/srv/nbd1"])
def test_other_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(NoSuchThing, match="no device of the kernel's nbd driver"):
        keeper.device_index(Path(device))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--export", "r0"],
        ["--export", "r0", "--resume", "/dev/nbd0"],
        ["--export", "r0", "--address", "a:1", "--connections", "0"],
        # Without one, the kernel does not show which sockets it has taken.
        ["--export", "r0", "--address", "a:1", "--request-timeout-s", "0"],
        ["--export", "r0", "--address", "a:1", "--dead-conn-timeout-s", "0"],
    ],
)
def test_arguments_that_make_no_device_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keeper.main(arguments)
    assert ended.value.code == 2


def test_failure_is_reported_as_one_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise Refused("This kernel has no nbd driver.", code="ATTACH_IMPOSSIBLE")

    monkeypatch.setattr(keeper, "open_control", no_driver)
    monkeypatch.setattr(keeper, "_end_on_signals", lambda: None)
    assert keeper.main(["--export", "r0", "--address", "127.0.0.1:1"]) == 5
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"]["code"] == "ATTACH_IMPOSSIBLE"
