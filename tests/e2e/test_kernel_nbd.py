"""A filesystem on the kernel's own nbd device, in an emulated machine, over a live pair of nodes.

The claim of all of them: whatever happens to the server, nothing above the device sees an error,
and what was synced is there afterwards.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Node, wait_for
from tests.e2e.emulated import HOST, EmulatedMachine, GuestFailed
from tests.pair import Pair

#: What the guest's kernel says when a filesystem was given an error, or the kernel itself is ill.
BAD_NEWS = re.compile(r"I/O error|EXT4-fs (error|warning)|aborted|Call Trace|hung_task", re.I)
SENT_AGAIN = "Connection timed out, retrying"
FILE_BYTES = 32 << 10
REQUEST_TIMEOUT_S = 2
MOUNT_POINT = "/mnt"
E2FSCK_DEADLINE_S = 60.0
#: So many looks in a row at which nothing was written say that the writer waits.
LOOKS = 10


@pytest.fixture(scope="module")
def guest() -> Iterator[EmulatedMachine]:
    folder = Path(tempfile.mkdtemp(prefix="repl-guest-"))
    try:
        with EmulatedMachine.boot(folder) as guest:
            yield guest
    finally:
        shutil.rmtree(folder)


class Scenario:
    """A filesystem in the guest, a writer on it, and how it all must end."""

    def __init__(self, guest: EmulatedMachine, pair: Pair) -> None:
        self.guest = guest
        self.pair = pair
        self.device = ""
        self._log_before = len(self.log())

    def attach(self, *nodes: Node, connections: int = 1, dead_conn_timeout_s: int = 600) -> None:
        options = {
            "connections": connections,
            "request_timeout_s": REQUEST_TIMEOUT_S,
            "dead_conn_timeout_s": dead_conn_timeout_s,
        }
        addresses = [f"{HOST}:{node.nbd_port}" for node in nodes]
        self.device = self.guest.ask("attach", addresses, "r0", options)

    def write_files(self) -> None:
        """Make a filesystem and write to it until `stop_writing`."""
        self.guest.ask("run", "mkfs.ext4", "-q", self.device)
        self.guest.ask("mount", self.device, MOUNT_POINT, "ext4")
        self.guest.ask("start_writing", MOUNT_POINT, FILE_BYTES)
        self.wait_written(5)

    def written(self) -> int:
        synced, error = self.guest.ask("written")
        assert not error, f"the writer was given an error: {error}"
        return int(synced)

    def wait_written(self, more: int) -> None:
        wanted = self.written() + more
        wait_for(lambda: self.written() >= wanted, what=f"{more} more files are synced")

    def wait_blocked(self) -> None:
        """Wait until requests were sent that nobody answers."""
        counts: list[int] = []

        def nothing_comes() -> bool:
            counts.append(self.written())
            return counts[-LOOKS:] == [counts[-1]] * LOOKS

        wait_for(nothing_comes, what="the writer waits for the server")

    def wait_sent_again(self) -> None:
        """Wait until a request has timed out from now on."""
        before = self.new_log().count(SENT_AGAIN)
        wait_for(lambda: self.new_log().count(SENT_AGAIN) > before, what="a request times out")

    def stop_and_unmount(self) -> None:
        """End the writer; what it synced must be on the device, not only in the guest's cache."""
        self.guest.ask("stop_writing")
        assert self.written() > 0
        self.guest.ask("unmount", MOUNT_POINT)
        self.guest.ask("mount", self.device, MOUNT_POINT, "ext4")
        assert self.guest.ask("damaged", MOUNT_POINT) == []
        self.guest.ask("unmount", MOUNT_POINT)

    def detach(self) -> None:
        name = self.device.removeprefix("/dev/")
        self.guest.ask("detach", self.device)
        assert not self.guest.ask("exists", f"/sys/block/{name}/pid")
        assert not self.guest.ask("exists", f"/run/repl/kernel-nbd/{name}.json")

    def log(self) -> str:
        text = self.guest.ask("kernel_log")
        assert isinstance(text, str)
        return text

    def new_log(self) -> str:
        return self.log()[self._log_before :]

    def assert_intact(self, *nodes: Node) -> None:
        """Nobody was told of trouble, and each node's copy holds a clean filesystem."""
        bad = [line for line in self.new_log().splitlines() if BAD_NEWS.search(line)]
        assert not bad, "\n".join(bad)
        for node in nodes:
            done = subprocess.run(
                ["e2fsck", "-f", "-n", node.backing("r0")],
                env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
                capture_output=True,
                text=True,
                timeout=E2FSCK_DEADLINE_S,
                check=False,
            )
            assert done.returncode == 0, f"{node.name}: {done.stdout}{done.stderr}"


@pytest.fixture
def scenario(guest: EmulatedMachine, pair: Pair) -> Scenario:
    pair.start_in_sync(primary=pair.alpha)
    return Scenario(guest, pair)


def test_filesystem_on_a_kernel_device_sees_nothing_of_a_killed_worker(scenario: Scenario) -> None:
    pair = scenario.pair
    scenario.attach(pair.alpha)
    scenario.write_files()
    # Stopped first, so that requests are under way for certain when it dies.
    pair.alpha.signal_worker(signal.SIGSTOP)
    scenario.wait_blocked()
    pair.alpha.signal_worker(signal.SIGKILL)
    scenario.wait_written(5)
    assert SENT_AGAIN in scenario.new_log()
    scenario.stop_and_unmount()
    scenario.detach()
    pair.wait_in_sync()
    scenario.assert_intact(*pair.nodes)
    pair.assert_copies_equal()


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 2])
def test_filesystem_on_a_kernel_device_outlives_daemons(
    scenario: Scenario, connections: int
) -> None:
    pair = scenario.pair
    scenario.attach(pair.alpha, connections=connections)
    scenario.write_files()
    for end in (pair.alpha.kill, pair.alpha.stop):
        end()
        scenario.wait_blocked()
        pair.alpha.start()
        pair.alpha.wait_volume(lambda v: not v["problem"], "is open")
        if pair.alpha.volume()["role"] != "primary":
            pair.alpha.promote()
        scenario.wait_written(5)
    scenario.stop_and_unmount()
    scenario.detach()
    pair.wait_in_sync()
    scenario.assert_intact(*pair.nodes)
    pair.assert_copies_equal()


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 2])
def test_kernel_device_follows_the_volume_to_the_other_node(
    scenario: Scenario, connections: int
) -> None:
    pair = scenario.pair
    scenario.attach(pair.alpha, pair.beta, connections=connections)
    scenario.write_files()
    pair.alpha.kill()
    scenario.wait_blocked()
    pair.beta.promote("r0", "--peer-dead", "alpha")
    scenario.wait_written(5)
    scenario.stop_and_unmount()
    scenario.detach()
    scenario.assert_intact(pair.beta)


@pytest.mark.slow
def test_kernel_device_comes_back_after_a_switch_there_and_back(scenario: Scenario) -> None:
    pair = scenario.pair
    scenario.attach(pair.alpha, pair.beta)
    scenario.write_files()
    for old, new in ((pair.alpha, pair.beta), (pair.beta, pair.alpha)):
        old.ctl_ok("demote", "r0", "--drop-clients")
        new.promote()
        scenario.wait_written(5)
        pair.wait_in_sync()
    scenario.stop_and_unmount()
    scenario.detach()
    scenario.assert_intact(*pair.nodes)
    pair.assert_copies_equal()


@pytest.mark.slow
def test_requests_of_a_frozen_server_are_sent_again_and_harm_nothing(scenario: Scenario) -> None:
    """The server is stopped for longer than the request timeout, then goes on with old requests."""
    pair = scenario.pair
    scenario.attach(pair.alpha)
    scenario.write_files()
    for _ in range(3):
        pair.alpha.signal_worker(signal.SIGSTOP)
        scenario.wait_sent_again()
        pair.alpha.signal_worker(signal.SIGCONT)
        scenario.wait_written(5)
    scenario.stop_and_unmount()
    scenario.detach()
    pair.wait_in_sync()
    scenario.assert_intact(*pair.nodes)


@pytest.mark.slow
def test_resumed_keeper_finds_out_what_died_while_there_was_none(scenario: Scenario) -> None:
    pair, guest = scenario.pair, scenario.guest
    scenario.attach(pair.alpha)
    scenario.write_files()
    name = scenario.device.removeprefix("/dev/")
    record = json.loads(guest.ask("read", f"/run/repl/kernel-nbd/{name}.json"))
    guest.ask("kill", record["pid"], signal.SIGKILL)
    scenario.wait_written(5)
    pair.alpha.signal_worker(signal.SIGKILL)
    scenario.wait_blocked()
    guest.ask("resume", scenario.device)
    scenario.wait_written(5)
    # And the next death is the new keeper's.
    pair.alpha.wait_primary()
    pair.alpha.signal_worker(signal.SIGKILL)
    scenario.wait_written(5)
    scenario.stop_and_unmount()
    scenario.detach()
    pair.wait_in_sync()
    scenario.assert_intact(*pair.nodes)


@pytest.mark.slow
def test_mounted_kernel_device_is_left_alone_unless_forced(scenario: Scenario) -> None:
    pair, guest = scenario.pair, scenario.guest
    scenario.attach(pair.alpha)
    scenario.write_files()
    with pytest.raises(GuestFailed, match="is in use"):
        guest.ask("detach", scenario.device)
    scenario.wait_written(5)
    pair.alpha.kill()
    scenario.wait_blocked()
    # The way out of a wait for a server that will never come back.
    guest.ask("stop_writing_soon")
    guest.ask("detach", scenario.device, True)
    synced, error = guest.ask("stop_writing")
    assert synced > 0
    assert "Input/output error" in error or "Read-only file system" in error
    guest.ask("unmount", MOUNT_POINT)


@pytest.mark.slow
def test_guarded_kernel_device_goes_on_only_as_permitted(scenario: Scenario) -> None:
    pair, guest = scenario.pair, scenario.guest
    scenario.device = guest.ask("attach_guarded", f"{HOST}:{pair.alpha.nbd_port}", "r0")
    scenario.write_files()
    guest.ask("permit", "another node has been primary")
    pair.alpha.signal_worker(signal.SIGKILL)
    pair.alpha.wait_primary()
    scenario.wait_blocked()
    guest.ask("permit", "")
    scenario.wait_written(5)
    scenario.stop_and_unmount()
    guest.ask("detach_guarded", scenario.device)
    assert not guest.ask("owns_guarded", scenario.device)
    pair.wait_in_sync()
    scenario.assert_intact(*pair.nodes)


@pytest.mark.slow
def test_guarded_kernel_device_that_is_cut_off_fails_at_once(scenario: Scenario) -> None:
    pair, guest = scenario.pair, scenario.guest
    scenario.device = guest.ask("attach_guarded", f"{HOST}:{pair.alpha.nbd_port}", "r0")
    scenario.write_files()
    pair.alpha.kill()
    scenario.wait_blocked()
    guest.ask("cut_off_guarded", scenario.device)
    guest.ask("stop_writing_soon")
    _, error = guest.ask("stop_writing")
    assert "Input/output error" in error or "Read-only file system" in error
    guest.ask("unmount", MOUNT_POINT)
    wait_for(lambda: not guest.ask("owns_guarded", scenario.device), what="the device is gone")


@pytest.mark.slow
def test_kernel_device_fails_only_after_the_dead_connection_timeout(scenario: Scenario) -> None:
    pair, guest = scenario.pair, scenario.guest
    scenario.attach(pair.alpha, dead_conn_timeout_s=10)
    scenario.write_files()
    pair.alpha.kill()
    scenario.wait_blocked()
    wait_for(lambda: guest.ask("written")[1], what="the writer is given an error")
    guest.ask("stop_writing")
    guest.ask("unmount", MOUNT_POINT)
    guest.ask("detach", scenario.device)
