"""The README's commands for two nodes, run as they stand on two pretended machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.attached import dead_devices
from tests.daemon import ROOT, wait_for
from tests.e2e.machines import Machine, two_machines
from tests.e2e.readme_blocks import NODES, Step, steps_of
from tests.probes import no_network_namespaces

#: Ends the daemon and its workers at once. The brackets keep the pattern from matching itself.
CRASH = "pkill -KILL -f '[r]epl[d.]'"

STARTS_DAEMON = re.compile(r"^\s*repld\b.*&\s*$", re.MULTILINE)


def carry_out(step: Step, machine: Machine, output: Path) -> None:
    with output.open("a") as said:
        said.write(f"\n--- README line {step.line}: {step.kind} on {step.node}\n{step.text}\n---\n")
    if step.kind == "file":
        machine.write_file(step.path, step.text)
        return
    script = step.text if step.kind == "run" else CRASH
    done = machine.run(script, output)
    assert done.returncode == step.exit_status, (
        f"README line {step.line} on {step.node} ended with {done.returncode}, "
        f"not {step.exit_status}:\n{output.read_text()}"
    )
    if STARTS_DAEMON.search(step.text):
        # A reader takes longer to go on to the next command than a daemon takes to start.
        wait_for(
            lambda: machine.run("replctl status >/dev/null 2>&1", output).returncode == 0,
            what=f"repld on {step.node} answers",
        )


def test_readme_shows_commands_for_both_nodes() -> None:
    steps = steps_of((ROOT / "README.md").read_text())
    run_on = {step.node for step in steps if step.kind == "run"}
    assert run_on == set(NODES)
    commands = "\n".join(step.text for step in steps)
    for command in ("repld --config", "replctl mount", "replctl umount", "replctl status"):
        assert command in commands


def test_readme_commands_work_on_two_nodes(tmp_path: Path) -> None:
    if no_network_namespaces():
        pytest.skip("this machine allows no namespaces")
    output = tmp_path / "said.txt"
    with two_machines() as machines:
        for step in steps_of((ROOT / "README.md").read_text()):
            carry_out(step, machines[step.node], output)
    # The devices belonged to machines that were switched off; the kernel clears them with those.
    wait_for(lambda: not dead_devices(), what="no loop device is left")
