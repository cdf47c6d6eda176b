"""The command table, usage errors in our three lines, start-up cost, and real terminals."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from repl import errors
from repl.cli.main import cli, main
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon

REPLCTL = [sys.executable, "-m", "repl.cli.main"]
BAD_NAMES = ["a/b", "../r0", "a b", "", " ", "r0\n", "a\x1bb", "a\tb", "-", "ä", "x" * 64, "."]


def test_exactly_the_built_verbs_exist() -> None:
    assert sorted(cli.commands) == sorted(
        ["status", "promote", "demote", "wait", "connect", "disconnect", "attach", "detach",
         "mount", "umount", "volume", "metadata", "config", "tls", "version",
         "splitbrain", "continue", "resync", "events"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "what", "next_step"),
    [
        ([], "Missing command.", "replctl --help"),
        (["statsu"], "No such command 'statsu'", "replctl status --help"),
        (["verify", "r0"], "No such command 'verify'", "--help"),
        (["resync", "r0"], "resync needs to be told what to do.", "replctl resync r0 pause"),
        (["resync", "r0", "stop"], "Invalid value for '[pause|resume|limit]'", "resync --help"),
        (["resync", "r0", "limit"], "limit needs a rate.", "resync r0 limit 100MB/s"),
        (["resync", "r0", "limit", "9"], "The limit cannot be used.", "limit 100MB/s"),
        (["resync", "r0", "limit", "0B/s"], "A limit of nothing is a pause.", "limit none"),
        (["resync", "r0", "pause", "9MB/s"], "pause takes no rate.", "replctl resync r0 pause"),
        (["resync", "r0", "--full"], "--full and --from NODE go together", "--full --from NODE"),
        (["resync", "r0", "--from", "b"], "--full and --from NODE go together", "--from NODE"),
        (["resync", "r0", "pause", "--full", "--from", "b"], "go together", "--full --from NODE"),
        (["continue"], "Missing argument 'VOL'", "replctl continue --help"),
        (["events", "--after", "-1"], "Invalid value for '--after'", "replctl events --help"),
        (["promote"], "Missing argument 'VOL'", "replctl promote --help"),
        (["status", "r0", "r1"], "Got unexpected extra argument (r1)", "replctl status --help"),
        (["--bogus", "status"], "No such option '--bogus'", "replctl --help"),
        (["status", "--bogus"], "No such option '--bogus'", "replctl status --help"),
        (["status", "--socket", "/x"], "No such option '--socket'", "--socket PATH VERB"),
        (["wait", "r0"], "Missing option '--for'", "replctl wait --help"),
        (["wait", "r0", "--for", "never"], "Invalid value for '--for'", "replctl wait --help"),
        (["wait", "r0", "--for", "primary", "--timeout", "-1"], "Invalid value", "wait --help"),
        (["wait", "r0", "--for", "primary", "--timeout", "x"], "Invalid value", "wait --help"),
        (["volume"], "Missing command.", "replctl volume --help"),
        (["volume", "adapt", "r0"], "No such command 'adapt'", "replctl volume adopt --help"),
        (["--socket", "", "status"], "'' cannot be a Unix socket.", "--socket"),
        (["--socket", "/" + "s" * 107, "status"], "cannot be a Unix socket.", "--socket"),
        (["--socket"], "Option '--socket' requires an argument", "replctl --help"),
    ],
)
def test_usage_errors_have_our_three_lines(
    capsys: pytest.CaptureFixture[str], arguments: list[str], what: str, next_step: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 3
    assert what in lines[0] and lines[0].endswith("  [USAGE]")
    assert lines[1].startswith("Why   ")
    assert lines[2].startswith("Next  ") and next_step in lines[2]
    assert out == ""
    assert main(["--json", *arguments]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["code"], error["exit_status"], err) == ("USAGE", 2, "")
    assert error["why"] and error["next"]


def test_misplaced_json_flag_is_put_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "r0", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["why"] == "--json is a global option and stands before the verb"
    assert error["next"] == "replctl --json status r0"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_volume_has_never_reach_the_daemon(
    daemon: FakeDaemon, replctl: Operator, name: str
) -> None:
    for arguments in (
        ["status", "--", name],
        ["promote", "--", name],
        ["promote", "r0", f"--peer-dead={name}"],
        ["demote", "--", name],
        ["wait", "--for", "primary", "--", name],
        ["connect", "--", name],
        ["connect", "--", "r0", name],
        ["disconnect", "--", name],
        ["volume", "adopt", "--", name],
        ["metadata", "dump", "--", name],
    ):
        result = replctl(*arguments)
        assert result.exit_status == 2, arguments
        lines = result.err.splitlines()
        assert len(lines) == 3, lines
        assert lines[1].startswith("Why   a name is 1 to 63 letters")
        assert lines[2].startswith("Next  ")
        assert all(char.isprintable() or char == "\n" for char in result.err)
    assert daemon.requests == []


@pytest.mark.parametrize(
    "error",
    [
        errors.ReplError("x", "y", "z"),
        errors.NoSuchThing("x", "y", "z"),
        errors.Refused("x", "y", "z", code="SPLIT_BRAIN"),
        errors.TimedOut("x", "y", "z"),
        errors.PermissionRefused("x", "y", "z"),
        errors.DaemonUnreachable("x", "y", "z", code="WORKER_SILENT"),
    ],
)
def test_exit_status_follows_the_daemons_error(
    daemon: FakeDaemon, replctl: Operator, error: errors.ReplError
) -> None:
    daemon.on("POST", "/v1/volumes/r0/connect", (500, {"error": error.to_json()}))
    result = replctl("connect", "r0")
    assert result.exit_status == error.exit_status
    assert result.err == f"x  [{error.code}]\nWhy   y\nNext  z\n"


def test_help_names_the_exit_statuses_and_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "7 not confirmed" in shown and "10 degraded" in shown
    for verb in cli.commands:
        assert f" {verb} " in shown
        assert main([verb, "--help"]) == 0


def test_interrupt_ends_quietly(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    daemon.serve_status(recorded.status(recorded.cut_off()))
    assert replctl("wait", "r0", "--for", "primary").exit_status == 130


def test_start_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom repl.cli.main import main\nstatus = main(['version'])\n"
        "heavy = {'pydantic', 'rich', 'aiohttp', 'asyncio', 'structlog', 'uvloop'}\n"
        "sys.exit(status or ','.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    environment = {**os.environ, "REPL_SOCKET": "/nonexistent/repld.sock"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_status_check_needs_no_drawing(daemon: FakeDaemon) -> None:
    daemon.serve_status(recorded.status(recorded.volume()))
    code = (
        "import sys\nfrom repl.cli.main import main\nstatus = main(['status', '--check'])\n"
        "sys.exit(status or ','.join({'rich', 'pydantic'} & sys.modules.keys()) or 0)"
    )
    environment = {**os.environ, "REPL_SOCKET": daemon.socket_path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "OK 1 volume is well.\n"), done.stderr


def test_reader_that_leaves_early_causes_no_traceback(daemon: FakeDaemon) -> None:
    many = [recorded.volume(f"v{number}") for number in range(2000)]
    daemon.serve_status(recorded.status(*many))
    command = [*REPLCTL, "--socket", daemon.socket_path, "--json", "status"]
    # Unbuffered, Python takes the first half written for all of it, and there is no error to see.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_output_that_cannot_be_written_is_an_error(daemon: FakeDaemon) -> None:
    daemon.serve_status(recorded.status(recorded.volume()))
    for flags in ([], ["--json"]):
        command = [*REPLCTL, "--socket", daemon.socket_path, *flags, "status"]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert done.returncode == 1
        assert done.stderr.startswith("Cannot write the output.  [UNEXPECTED]\nWhy   No space left")


def on_a_terminal(arguments: list[str], typed: bytes, **environment: str) -> tuple[int, str]:
    """Run `replctl` with a terminal of its own and return its exit status and what it shows."""
    leader, follower = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [*REPLCTL, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**variables, "TERM": "xterm", **environment},
    )
    os.close(follower)
    os.write(leader, typed)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break  # Linux reports the last close of a terminal's other side as an I/O error.
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(60), shown.decode()


def test_colour_only_repeats_what_the_words_say(daemon: FakeDaemon) -> None:
    daemon.serve_status(recorded.status(recorded.resyncing()))
    arguments = ["--socket", daemon.socket_path, "status"]
    exit_status, coloured = on_a_terminal(arguments, b"")
    assert exit_status == 0
    assert "\x1b[1;33mDEGRADED\x1b[0m" in coloured
    _, plain = on_a_terminal(arguments, b"", NO_COLOR="1")
    assert "\x1b[1;33m" not in plain and "DEGRADED" in plain
    _, dumb = on_a_terminal(arguments, b"", TERM="dumb")
    assert "\x1b[" not in dumb and "DEGRADED" in dumb


def test_real_terminal_asks_for_the_name(daemon: FakeDaemon) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    daemon.on("POST", "/v1/volumes/r0/promote", (200, {"reason": "it was accepted"}))
    arguments = ["--socket", daemon.socket_path, "promote", "r0", "--lose-data"]
    exit_status, shown = on_a_terminal(arguments, b"no\n")
    assert exit_status == 7
    assert "Type the volume's name to go on (r0): " in shown
    exit_status, shown = on_a_terminal(arguments, b"r0\n")
    assert exit_status == 0
    assert shown.rstrip().endswith("r0 is primary on this node: it was accepted.")
