"""The pretended machines themselves: joined, private, and gone without a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.daemon import wait_for
from tests.e2e.machines import two_machines
from tests.probes import no_network_namespaces


def test_machines_reach_each_other_and_leave_nothing(tmp_path: Path) -> None:
    if no_network_namespaces():
        pytest.skip("this machine allows no namespaces")
    host_files = set(os.listdir("/srv")) | set(os.listdir("/etc"))
    output = tmp_path / "said.txt"
    with two_machines() as machines:
        firsts = [machine.pid for machine in machines.values()]
        machines["alpha"].write_file("/etc/repl/made-here", "text\n")
        for machine, script in (
            ("alpha", "test $(hostname) = alpha && cat /etc/repl/made-here && touch /srv/mine"),
            ("beta", "test ! -e /srv/mine && test ! -e /etc/repl && sleep 1000 & "),
            ("alpha", "exec 3<>/dev/tcp/10.0.0.2/9 || test $? = 1"),
            ("beta", "python3 -m http.server --bind 10.0.0.2 7790 >/dev/null 2>&1 &"),
        ):
            done = machines[machine].run(script, output)
            assert done.returncode == 0, output.read_text()
        wait_for(
            lambda: machines["alpha"].run("exec 3<>/dev/tcp/10.0.0.2/7790", output).returncode == 0,
            what="beta is reached from alpha",
        )
    wait_for(
        lambda: not [pid for pid in firsts if Path(f"/proc/{pid}").exists()],
        what="both machines are gone",
    )
    assert set(os.listdir("/srv")) | set(os.listdir("/etc")) == host_files
