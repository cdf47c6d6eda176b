"""What operators order of real daemons: continue, resync, and what events tell of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import MIB, ROOT, Json, Node, VolumeSpec, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept, sent_in_resyncs
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

ASKING = VolumeSpec(options=('alone = "ask"',))
ME = f"uid {os.getuid()}"


@pytest.fixture
def asking_pair() -> Iterator[Pair]:
    with Pair.make((ASKING,)) as pair:
        yield pair


@pytest.fixture
def limited_pair() -> Iterator[Pair]:
    with Pair.make((VolumeSpec(options=('resync_rate_limit = "1MiB/s"',)),)) as pair:
        yield pair


def codes(node: Node, volume: str = "r0") -> list[str]:
    found = json.loads(node.ctl_ok("--json", "events", volume))["events"]
    return [event["code"] for event in found]


def fill(node: Node, megabytes: int, pattern: int) -> None:
    """Write so much that a resync takes a moment, and flush it."""
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", f"write -P {pattern} 0 {megabytes}M", "-c", "flush",
         node.uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# continue


def test_nothing_is_acknowledged_alone_until_an_operator_continues(
    asking_pair: Pair, ledger: Ledger
) -> None:
    pair, alpha = asking_pair, asking_pair.alpha
    pair.start_in_sync(primary=alpha)
    with LedgerClient(ledger, alpha.uri(), flush_every=20) as client:
        client.wait_acknowledged(200)
        pair.beta.kill()
        frozen = alpha.wait_volume(lambda v: v["alone"], "waits for leave to go on alone")
        assert frozen["frozen"] and frozen["next"].endswith("replctl continue r0")
        assert alpha.ctl("status", "--check").returncode == 11
        before = client.acknowledged
        # Longer than everything after which a primary that need not ask goes on.
        alpha.wait_volume(lambda v: v["alone"]["for_s"] > 3, "is still frozen")
        assert client.acknowledged == before
        said = alpha.ctl("continue", "r0")
        assert (said.returncode, said.stderr) == (0, "it goes on without beta\n")
        client.wait_acknowledged(200)
        [permit] = alpha.volume()["permits"]
        assert permit["kind"] == "alone" and ME in permit["permit"]
        assert f"({ME}) continued without beta" in alpha.ctl_ok("status")
        assert alpha.ctl("continue", "r0").returncode == 5
        pair.beta.start()
        pair.wait_in_sync()
        client.wait_acknowledged(50)
    assert alpha.volume()["permits"] == []
    assert_no_error_reached(client)
    assert_promises_kept(pair, alpha, ledger)
    told = [c for c in codes(alpha) if c in ("FROZEN", "ALONE_PERMITTED", "THAWED")]
    assert told == ["FROZEN", "ALONE_PERMITTED", "THAWED"]


# resync pause, resume, limit


def kill_worker(node: Node) -> None:
    """Kill the volume's worker and wait until the next one has opened it."""
    killed = node.signal_worker(signal.SIGKILL)
    node.wait_volume(lambda v: v["worker_pid"] not in (None, killed), "has a worker again")
    node.wait_volume(lambda v: not v["problem"], "is open")


def undisturbed(_node: Node) -> None:
    """Do nothing."""


def test_a_pause_outlives_connections_and_workers_and_a_limit_holds(limited_pair: Pair) -> None:
    pair, alpha, beta = limited_pair, limited_pair.alpha, limited_pair.beta
    pair.start_in_sync(primary=alpha)
    beta.kill()
    fill(alpha, 16, 1)
    beta.start()
    beta.ctl_ok("resync", "r0", "pause")
    for disturb in (undisturbed, kill_worker):
        disturb(beta)
        paused = alpha.wait_volume(
            lambda v: v["peers"][0]["replication_state"] == "paused", "shows the pause"
        )
        assert f"paused by an operator ({ME}) on beta" in paused["peers"][0]["resync"]["stalled"]
        assert "replctl resync r0 resume" in paused["next"]
    left = alpha.peer_of()["resync"]["remaining_bytes"]
    assert left > 0
    fill(alpha, 1, 2)  # writes flow on, and the copy does not
    assert alpha.peer_of()["resync"]["remaining_bytes"] == left
    beta.ctl_ok("resync", "r0", "resume")
    limited = alpha.wait_volume(
        lambda v: v["peers"][0]["resync"]["rate_bytes_per_s"], "copies, slowly"
    )["peers"][0]["resync"]
    assert limited["rate_limit_bytes_per_s"] == MIB
    assert 0 < limited["rate_bytes_per_s"] < 2.5 * MIB
    assert "limit 1 MB/s" in alpha.ctl_ok("status")
    said = alpha.ctl("resync", "r0", "limit", "none").stderr
    assert f"beta limits them to {MIB} bytes/s" in said, "the stricter of both holds"
    beta.ctl_ok("resync", "r0", "limit", "none")
    pair.wait_in_sync()
    pair.assert_copies_equal()
    assert "RESYNC_LIMITED" in codes(alpha) and "RESYNC_PAUSED" in codes(beta)


# resync --full --from


def test_a_silent_difference_is_found_and_mended_by_name(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.start_in_sync(primary=alpha)
    fill(alpha, 8, 3)
    for node in pair.nodes:
        # What intents still mark is compared at the next contact; the rest is taken on trust.
        node.wait_volume(lambda v: not v["hot_extents"], "has no extent in doubt")
    assert beta.stop() == 0
    with beta.backing().open("r+b") as image:
        image.seek(3 * MIB)
        image.write(b"rot")
    beta.start()
    pair.wait_in_sync()
    assert not pair.copies_equal(), "nothing of the replication can know of it"
    refused = alpha.ctl("resync", "r0", "--full", "--from", "beta")
    assert refused.returncode == 5 and "[RESYNC_PRIMARY]" in refused.stderr
    assert beta.ctl("resync", "r0", "--full", "--from", "beta").returncode == 5
    assert beta.ctl("resync", "r0", "--full", "--from", "gamma").returncode == 4
    before = sent_in_resyncs(alpha)
    beta.ctl_ok("resync", "r0", "--full", "--from", "alpha")
    beta.ctl_ok("wait", "r0", "--for", "in-sync", "--timeout", "60")
    pair.wait_in_sync()
    pair.assert_copies_equal()
    # Digests of 8 MiB are 32 KiB; of the data itself one block of 4 KiB is sent.
    assert sent_in_resyncs(alpha) - before < 128 << 10
    assert "FULL_COMPARISON_ORDERED" in codes(beta)


def test_a_restored_backup_is_taken_up_again_by_name(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.start_in_sync(primary=alpha)
    fill(alpha, 2, 4)
    assert beta.stop() == 0
    backup = pair.folder / "backup"
    shutil.copytree(beta.folder, backup)
    for pattern in (5, 6):
        beta.start()
        pair.wait_in_sync()
        fill(alpha, 1, pattern)
        assert beta.stop() == 0
    _restore(backup, beta.folder)
    beta.start()
    refused = beta.wait_volume(
        lambda v: v["peers"][0]["connection_state"] == "refused", "is refused"
    )
    assert refused["peers"][0]["last_handshake"]["rule"] == "no-common-contact"
    assert "on beta: replctl resync r0 --full --from alpha" in refused["next"]
    command = ("resync", "r0", "--full", "--from", "alpha")
    assert beta.ctl(*command).returncode == 7, "these copies do not know each other"
    beta.ctl_ok(*command, "--confirm", "r0")
    pair.wait_in_sync()
    pair.assert_copies_equal()


def _restore(backup: Path, folder: Path) -> None:
    """Put the old bytes into the same files, as a restored machine has them."""
    for name in ("r0.img", "state/volumes/r0.meta"):
        data = (backup / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.write(data)
            file.truncate(len(data))


# events


class Follower:
    """`replctl --json events --follow` as a process; collects what it prints."""

    def __init__(self, node: Node) -> None:
        self.events: list[Json] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "repl.cli.main", "--socket", str(node.control), "--json",
             "events", "--follow", "--last", "0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def wait(self, code: str, **fields: Any) -> Json:
        """Wait for an event of this code with these fields; return it."""

        def seen() -> Json | None:
            for event in list(self.events):
                if event["code"] == code and fields.items() <= event["fields"].items():
                    return event
            return None

        return wait_for(seen, what=f"{code} {fields} among {[e['code'] for e in self.events]}")


def test_a_follower_sees_a_failover_and_stays_through_a_crash_of_the_daemon(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.start_in_sync(primary=alpha)
    with Follower(beta) as follower:
        # It is following when it prints the first event that comes.
        wait_for(lambda: beta.status()["events"]["followers"] == 1, what="somebody follows")
        alpha.kill()
        follower.wait("PEER_DISCONNECTED", peer="alpha")
        beta.promote("r0", "--peer-dead", "alpha")
        promoted = follower.wait("PROMOTED", peer_dead="alpha", by=ME)
        assert promoted["fields"]["contact_lost_s"] > 0
        follower.wait("SET_CHANGED", members=["beta"], left=["alpha"])
        follower.wait("ROLE_PRIMARY")
        fill(beta, 1, 7)
        follower.wait("CLIENTS_CHANGED", attached=1)
        beta.signal_worker(signal.SIGKILL)
        follower.wait("WORKER_ENDED")
        follower.wait("RESUMED")
        last = follower.events[-1]["number"]
        beta.kill()
        beta.start()
        started = follower.wait("DAEMON_STARTED")
        assert started["number"] > last
        alpha.start()
        follower.wait("RESYNC_FINISHED", peer="alpha")
        follower.wait("PEER_IN_SYNC", peer="alpha")
    numbers = [event["number"] for event in follower.events]
    assert numbers == sorted(set(numbers)), "each event once, in its order"
    [permit] = beta.volume()["permits"] or [None]
    assert permit is None, "the peer is back: the word that was given is history"
