"""The systemd units: systemd accepts them, and their commands and paths are the real ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from repl import errors
from repl.attach.record import Folder
from repl.cli.main import cli
from repl.config import CONTROL_DEFAULT
from repl.node.main import parse_arguments
from tests.daemon import ROOT

UNITS = ROOT / "deploy/systemd"
DAEMON, MOUNT = UNITS / "repld.service", UNITS / "repl-mount@.service"
EXEC = re.compile(r"^(Exec\w+)=(.*)$", re.MULTILINE)
#: As an administrator would set them; each is one word, or several.
VARIABLES = {
    "${REPL_MOUNT_DIRECTORY}": ["/srv/data"],
    "${REPL_MOUNT_WAIT}": ["90s"],
    "$REPL_MOUNT_OPTIONS": ["--options", "noatime"],
    "%i": ["r0"],
}


def commands(unit: Path) -> dict[str, list[str]]:
    """Return the command lines of a unit by their setting, with the variables filled in."""
    found = {}
    for setting, line in EXEC.findall(unit.read_text()):
        words = shlex.split(line)
        found[setting] = [part for word in words for part in VARIABLES.get(word, [word])]
    return found


def settings(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def verified(folder: Path, **texts: str) -> str:
    """Have systemd check units; return what it complains about."""
    for name, text in texts.items():
        # Programs that are not installed on this machine are not what is checked.
        (folder / name).write_text(re.sub(r"=(repld|replctl) ", "=/bin/true ", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(folder / name) for name in texts)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    units = {"repld.service": DAEMON.read_text(), "repl-mount@r0.service": MOUNT.read_text()}
    assert verified(tmp_path, **units) == ""


def test_systemd_would_complain_of_a_mistake(tmp_path: Path) -> None:
    wrong = DAEMON.read_text().replace("Restart=always", "Restrat=always")
    assert "Restrat" in verified(tmp_path, **{"repld.service": wrong})


def test_daemon_is_started_as_it_takes_its_arguments() -> None:
    program, *arguments = commands(DAEMON)["ExecStart"]
    assert program == "repld"
    assert parse_arguments(arguments).config == "/etc/repl/repld.toml"


@pytest.mark.parametrize("setting", ["ExecStart", "ExecStop"])
def test_mount_is_told_what_replctl_understands(setting: str) -> None:
    program, verb, *arguments = commands(MOUNT)[setting]
    command = cli.commands[verb]
    assert program == "replctl" and isinstance(command, click.Command)
    parsed = command.make_context(verb, list(arguments)).params
    assert parsed["directory"] == "/srv/data"
    assert parsed.get("options", "noatime") == "noatime"


@pytest.mark.parametrize(
    ("waited", "condition"),
    # systemd: 0 goes on, 1 to 254 skips the unit, 255 fails it.
    [(0, 0), (errors.TimedOut.exit_status, 1), (errors.NoSuchThing.exit_status, 255), (3, 255)],
)
def test_only_a_secondary_is_skipped(tmp_path: Path, waited: int, condition: int) -> None:
    stand_in = tmp_path / "replctl"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >"$0.said"\nexit {waited}\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        commands(MOUNT)["ExecCondition"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == condition
    said = (tmp_path / "replctl.said").read_text().split()
    assert said == ["wait", "r0", "--for", "primary", "--timeout", "90s"]
    assert cli.commands["wait"].make_context("wait", said[1:]).params["timeout_s"] == 90.0


def test_main_process_of_a_mount_is_its_guardian() -> None:
    folder = Folder(Path(CONTROL_DEFAULT).parent, "%i")
    assert settings(MOUNT, "PIDFile") == [str(folder.path / "guardian.pid")]
    assert settings(DAEMON, "RuntimeDirectory") == ["repl"]
    assert settings(DAEMON, "RuntimeDirectoryPreserve") == ["yes"]


def test_daemon_is_not_started_again_where_that_mends_nothing() -> None:
    hopeless = {errors.UsageError, errors.ConfigInvalid, errors.PermissionRefused}
    (statuses,) = settings(DAEMON, "RestartPreventExitStatus")
    assert {int(status) for status in statuses.split()} == {
        family.exit_status for family in hopeless
    }


def test_example_sets_every_variable_that_the_unit_uses() -> None:
    used = set(re.findall(r"\$\{?(REPL_\w+)", MOUNT.read_text()))
    assert used == set(re.findall(r"^(REPL_\w+)=", (UNITS / "r0.env").read_text(), re.MULTILINE))
