"""The daemon's log: its two formats, the libraries' lines in it, and the limit on repetitions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from repl.node.logs import RepeatLimit
from tests.daemon import ROOT

PROGRAM = """
import logging, sys
from repl.node import logs
logs.configure(sys.argv[1])
log = logs.logger("test").bind(volume="r0")
log.warning("It is slow.", waited_s=1.5)
logging.getLogger("asyncio").error("from a library: %s", "text")
for n in range(5):
    logging.getLogger("nbdserver").info("%s: refused %s", f"client {n}", "r0")
"""


def logged(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_text_format_says_what_happened_and_its_facts() -> None:
    lines = logged("text")
    assert "It is slow." in lines[0]
    assert "volume=r0" in lines[0]
    assert "waited_s=1.5" in lines[0]
    assert "\\x1b" not in lines[0], "no colours where nobody looks"


def test_json_format_holds_the_lines_of_libraries_too() -> None:
    first, second, *refusals = [json.loads(line) for line in logged("json")]
    assert (
        first.items()
        >= {
            "event": "It is slow.",
            "level": "warning",
            "volume": "r0",
            "waited_s": 1.5,
        }.items()
    )
    assert second["event"] == "from a library: text"
    assert [line["event"] for line in refusals] == ["client 0: refused r0"]


def test_reader_that_went_away_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "text"], cwd=ROOT, stderr=writing, timeout=60, check=False
    )
    os.close(writing)
    assert done.returncode == 0


def test_repeated_message_is_written_once_in_its_interval_and_then_counted() -> None:
    now_s = 100.0
    limit = RepeatLimit(interval_s=5.0, clock=lambda: now_s)
    assert limit.admit("a") == 0
    assert limit.admit("a") is None
    assert limit.admit("a") is None
    assert limit.admit("b") == 0, "another message is not held back"
    now_s += 5.0
    assert limit.admit("a") == 2
    assert limit.admit("a") is None


def test_limit_remembers_a_bounded_number_of_keys() -> None:
    limit = RepeatLimit(interval_s=5.0, keys_max=10, clock=lambda: 0.0)
    for n in range(1000):
        assert limit.admit(str(n)) == 0
    assert len(limit._seen) == 10
    assert limit.admit("999") is None


def test_count_of_held_back_messages_is_a_field_of_the_line() -> None:
    now_s = 0.0
    limit = RepeatLimit(interval_s=5.0, clock=lambda: now_s)
    written: list[dict[str, object]] = []

    def log(text: str, **fields: object) -> None:
        written.append({"text": text, **fields})

    for n in range(3):
        limit.write(log, "key", "No descriptor is left.", n=n)
    now_s = 6.0
    limit.write(log, "key", "No descriptor is left.", n=3)
    assert written == [
        {"text": "No descriptor is left.", "n": 0},
        {"text": "No descriptor is left.", "n": 3, "repeated": 2},
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_is_empty(log_format: str) -> None:
    assert all(line.strip() for line in logged(log_format))
