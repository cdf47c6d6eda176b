"""`make demo`: two nodes on this machine, a real filesystem, a crash during writes, a failover.

Everything happens in one temporary folder and on loopback. It takes less than a minute, ends by
itself, and takes down what it set up, also when something fails or it is interrupted. Exit status
0 means that every promise was kept; 1 that one was not (the last lines say which).
"""

from __future__ import annotations

import contextlib
import filecmp
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from nodes import VOLUME, VOLUME_BYTES, DemoFailed, DemoNode, free_ports, wait_until
from places import Filesystem, Place, Records, Writing

MIB = 1 << 20
#: The whole demonstration must end by then, whatever hangs.
DEMO_DEADLINE_S = 150
FILES_BEFORE = 40
FILES_DURING = 25
FILES_AFTER = 120
FILES_MAX = 500
#: What a resync may cost for each changed byte, and on top of it for what alpha was in the middle
#: of writing when it was killed.
WIRE_OVERHEAD = 1.05
IN_FLIGHT_BYTES_MAX = 4 * MIB
BAR_CELLS = 30


class Interrupted(BaseException):
    """A signal ended the demonstration; no `except` on the way may take it for a failed step."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Story:
    """Prints the steps with the time since the start."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def tell(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started_s:5.1f} s] {text}", flush=True)

    def detail(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(f"          {line}", flush=True)

    def bar(self, share: float, words: str, *, last: bool = False) -> None:
        """Draw the progress in place on a terminal; elsewhere only its end."""
        filled = round(share * BAR_CELLS)
        line = f"          [{'#' * filled}{'-' * (BAR_CELLS - filled)}] {share:6.1%}  {words}"
        if self.terminal:
            print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
        elif last:
            print(line, flush=True)


def mebibytes(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def is_in_sync(node: DemoNode) -> bool:
    volume = node.volume()
    (peer,) = volume["peers"]
    return bool(
        volume["disk_state"] == "up-to-date"
        and peer["replication_state"] == "established"
        and peer["disk_state"] == "up-to-date"
    )


def attach_first(story: Story, folder: Path, node: DemoNode, stack: contextlib.ExitStack) -> Place:
    """Put an ext4 on the export where this machine allows it, else say why not."""
    filesystem = Filesystem(folder / "alpha-attached", node.uri)
    stack.callback(filesystem.detach)
    try:
        filesystem.attach()
    except DemoFailed as failure:
        filesystem.detach()
        story.tell("no filesystem here: FUSE or loop devices are not allowed; records over NBD")
        story.detail(str(failure))
        return Records(node.uri)
    filesystem.format()
    filesystem.mount()
    story.tell(f"alpha's export is {filesystem.device} (nbdfuse + losetup): ext4 made and mounted")
    return filesystem


def attach_second(story: Story, folder: Path, node: DemoNode, stack: contextlib.ExitStack) -> Place:
    """Attach the survivor's export and let the filesystem recover as after any crash."""
    filesystem = Filesystem(folder / "beta-attached", node.uri)
    stack.callback(filesystem.detach)
    filesystem.attach()
    story.tell("beta's export is attached; e2fsck -p replays the journal:")
    story.detail(filesystem.replay_journal())
    story.tell("e2fsck -f -n looks at everything and finds nothing wrong:")
    story.detail(filesystem.check())
    filesystem.mount()
    return filesystem


def check_promises(place: Place, promises: dict[str, str], where: str) -> None:
    """Raise DemoFailed unless everything promised is there with its checksum."""
    wrong = [name for name, digest in promises.items() if place.digest(name) != digest]
    if wrong:
        raise DemoFailed(f"{len(wrong)} of {len(promises)} are wrong {where}: {wrong[:5]}")


def crash_during_writes(story: Story, alpha: DemoNode, place: Place) -> dict[str, str]:
    """Write, kill the primary in the middle of it, and return everything that was promised."""
    with Writing(place, seed=1, count=FILES_BEFORE) as before:
        before.read_promises(FILES_BEFORE)
    story.tell(f"{len(before.promises)} files written and fsynced")
    with Writing(place, seed=2, count=FILES_MAX) as during:
        during.read_promises(FILES_DURING)
        alpha.kill_group()
        story.tell("SIGKILL to alpha's whole process group while a writer is at work")
    story.tell(f"{len(during.promises)} more fsyncs had returned by then")
    place.detach()
    story.tell("the dead device is taken down")
    return before.promises | during.promises


def fail_over(story: Story, alpha: DemoNode, beta: DemoNode) -> None:
    """Promote beta: refused while nobody vouches for alpha's death, granted when somebody does."""
    wait_until(lambda: beta.peer()["connection_state"] != "connected", "beta notices the loss")
    refused = beta.try_ctl("promote", VOLUME)
    if refused.returncode != 5:
        raise DemoFailed(f"a plain promote was not refused (status {refused.returncode})")
    story.tell(f"beta$ replctl promote {VOLUME}        is refused, since alpha might be alive:")
    story.detail(refused.stderr)
    beta.ctl("promote", VOLUME, "--peer-dead", alpha.name)
    story.tell(f"beta$ replctl promote {VOLUME} --peer-dead alpha        beta is primary")


def bring_back(story: Story, alpha: DemoNode, beta: DemoNode) -> None:
    """Start alpha again and follow its resync: only what changed may be copied."""
    peer = beta.peer()
    behind_bytes = int(peer["out_of_sync_bytes"])
    sent_before = int(peer["resync_sent_bytes_total"])
    limit_bytes = WIRE_OVERHEAD * behind_bytes + IN_FLIGHT_BYTES_MAX
    story.tell(f"alpha starts again; it is {mebibytes(behind_bytes)} behind")
    alpha.start()
    follow_resync(story, alpha, beta)
    sent_bytes = int(beta.peer()["resync_sent_bytes_total"]) - sent_before
    story.bar(1.0, f"{mebibytes(sent_bytes)} sent", last=True)
    story.tell(f"in sync: {mebibytes(sent_bytes)} copied, of {mebibytes(VOLUME_BYTES)}")
    if sent_bytes > limit_bytes:
        raise DemoFailed(f"more than {mebibytes(int(limit_bytes))} were copied")
    if behind_bytes and not sent_bytes:
        raise DemoFailed("nothing was copied although alpha was behind")


def follow_resync(story: Story, alpha: DemoNode, beta: DemoNode) -> None:
    def joined() -> bool:
        resync: dict[str, Any] | None = beta.peer()["resync"]
        if resync is not None:
            whole = resync["done_bytes"] + resync["remaining_bytes"]
            share = resync["done_bytes"] / whole if whole else 0.0
            story.bar(min(share, 0.999), f"{mebibytes(resync['remaining_bytes'])} left")
        return is_in_sync(beta) and is_in_sync(alpha)

    wait_until(joined, "alpha is in sync again")


def prove_copies_equal(story: Story, alpha: DemoNode, beta: DemoNode) -> None:
    for node in (beta, alpha):
        node.stop()
    if not filecmp.cmp(alpha.backing, beta.backing, shallow=False):
        raise DemoFailed("the two backing files differ")
    size = mebibytes(alpha.backing.stat().st_size)
    story.tell(f"both stopped; their backing files are equal, byte for byte ({size} each)")


def play(story: Story, folder: Path, stack: contextlib.ExitStack, nodes: list[DemoNode]) -> None:
    """The whole story. Raises DemoFailed at the first promise that is not kept."""
    alpha, beta = nodes
    for node in nodes:
        node.start()
    for node in nodes:
        node.ctl("wait", VOLUME, "--for", "in-sync", "--timeout", "30")
    story.tell(
        f"two repld on loopback mirror {VOLUME} ({mebibytes(VOLUME_BYTES)}); fresh and in sync"
    )
    alpha.ctl("promote", VOLUME)
    story.tell(f"alpha$ replctl promote {VOLUME}        alpha is primary")

    place = attach_first(story, folder, alpha, stack)
    promises = crash_during_writes(story, alpha, place)
    fail_over(story, alpha, beta)

    if isinstance(place, Filesystem):
        place = attach_second(story, folder, beta, stack)
    else:
        place = Records(beta.uri)
    check_promises(place, promises, "on beta")
    story.tell(f"all {len(promises)} files whose fsync had returned have their checksum on beta")

    with Writing(place, seed=3, count=FILES_AFTER) as after:
        after.read_promises(FILES_AFTER)
    story.tell(f"work goes on: {len(after.promises)} files more on beta while alpha is dead")
    bring_back(story, alpha, beta)

    check_promises(place, promises | after.promises, "at the end")
    if isinstance(place, Filesystem):
        place.unmount()
        place.check()
    place.detach()
    story.tell(f"all {len(promises) + len(after.promises)} files are whole; unmounted")
    prove_copies_equal(story, alpha, beta)


def leftovers(folder: Path, nodes: list[DemoNode]) -> list[str]:
    """Return what is still there of the demonstration after it was taken down."""
    left = [f"process {pid}" for node in nodes for pid in node.clean_up()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [f"mount {line.split()[1]}" for line in mounts if str(folder) in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if str(folder) in backing.read_text():
                left.append(f"/dev/{backing.parts[3]}")
    return left


def show_logs(story: Story, nodes: list[DemoNode]) -> None:
    for node in nodes:
        if node.log.exists():
            story.detail(f"--- {node.name}'s log ends:")
            story.detail("\n".join(node.log.read_text(errors="replace").splitlines()[-15:]))


def ignore_signals() -> None:
    """From here on nothing may stop the taking down; its waits have deadlines of their own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupted(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    raise Interrupted("it took too long" if number == signal.SIGALRM else f"interrupted by {name}")


def main() -> int:
    for number in SIGNALS:
        signal.signal(number, interrupted)
    signal.alarm(DEMO_DEADLINE_S)
    story = Story()
    folder = Path(tempfile.mkdtemp(prefix="repl-demo-"))
    ports = free_ports(2)
    nodes = [
        DemoNode(folder, "alpha", ports[0], "beta", ports[1]),
        DemoNode(folder, "beta", ports[1], "alpha", ports[0]),
    ]
    failure = ""
    try:
        with contextlib.ExitStack() as stack:
            try:
                play(story, folder, stack, nodes)
            finally:
                ignore_signals()
    except DemoFailed as failed:
        failure = str(failed)
        show_logs(story, nodes)
    except Interrupted as interruption:
        failure = str(interruption)
    finally:
        left = leftovers(folder, nodes)
        if not left:
            shutil.rmtree(folder, ignore_errors=True)
    if left and not failure:
        failure = f"left behind: {', '.join(left)}"
    if failure:
        story.tell(f"FAILED: {failure}")
        return 1
    story.tell("nothing is left behind; the demonstration is over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
