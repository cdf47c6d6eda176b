"""Attaching and detaching, as far as no kernel driver is needed; the rest is tests/e2e."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from repl.attach import kernel_nbd
from repl.errors import NoSuchThing, Refused, ReplError


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kernel_nbd, "RUNTIME_DIR", tmp_path / "kernel-nbd")
    monkeypatch.setattr(kernel_nbd, "available", lambda: (True, ""))
    return tmp_path / "kernel-nbd"


def keeper_that(says: str) -> list[str]:
    return [sys.executable, "-c", says]


def test_availability_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_nbd, "_may_administrate", lambda: False)
    assert kernel_nbd.available() == (False, "only root may make block devices")
    monkeypatch.setattr(kernel_nbd, "_may_administrate", lambda: True)
    monkeypatch.setattr(kernel_nbd, "module_is_installed", lambda: False)
    possible, why = kernel_nbd.available()
    assert not possible
    assert "no module nbd" in why
    monkeypatch.setattr(kernel_nbd, "module_is_installed", lambda: True)
    assert kernel_nbd.available() == (True, "")


def test_attach_where_it_is_impossible_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_nbd, "available", lambda: (False, "the kernel has no module nbd"))
    with pytest.raises(Refused, match="cannot be attached") as refused:
        kernel_nbd.attach("127.0.0.1:1", "r0")
    assert (refused.value.code, refused.value.why) == (
        "ATTACH_IMPOSSIBLE",
        "the kernel has no module nbd",
    )


def test_device_is_what_the_keeper_reports(runtime: Path) -> None:
    command = keeper_that('print(\'{"device": "/dev/nbd3"}\')')
    assert kernel_nbd._start_keeper(command) == Path("/dev/nbd3")
    assert (runtime / "keepers.log").exists()


def test_error_of_the_keeper_is_the_callers(runtime: Path) -> None:
    refusal = Refused("Cannot attach r0.", "nobody serves it", code="ATTACH_FAILED").to_json()
    with pytest.raises(Refused, match="Cannot attach r0") as refused:
        kernel_nbd._start_keeper(
            keeper_that(f"import json; print(json.dumps({{'error': {refusal}}}))")
        )
    assert refused.value.why == "nobody serves it"


def test_keeper_that_dies_without_a_word_is_an_error(runtime: Path) -> None:
    with pytest.raises(ReplError, match="before it made a device") as failure:
        kernel_nbd._start_keeper(keeper_that("raise SystemExit('no module')"))
    assert failure.value.code == "ATTACH_FAILED"
    assert failure.value.why == "the last line in its log: no module"
    assert (runtime / "keepers.log").exists()


def test_every_option_reaches_the_keeper(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def start(command: list[str]) -> Path:
        commands.append(command)
        return Path("/dev/nbd0")

    monkeypatch.setattr(kernel_nbd, "_start_keeper", start)
    kernel_nbd.attach(["a:1", "b:2"], "r0", 2, 600, 5)
    kernel_nbd.attach("a:1", "r0")
    words = " ".join(commands[0][4:])
    assert words == (
        "--export r0 --address a:1 --address b:2 --connections 2"
        " --request-timeout-s 5 --dead-conn-timeout-s 600"
    )
    assert "--connections 1 --request-timeout-s 10 --dead-conn-timeout-s 86400" in " ".join(
        commands[1]
    )


def test_detach_of_what_is_no_device_is_refused() -> None:
    with pytest.raises(NoSuchThing):
        kernel_nbd.detach(Path("/dev/sda"))
