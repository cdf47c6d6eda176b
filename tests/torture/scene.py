"""What the torture plays on: two nodes, the link between them, the book, the clients, an operator.

The operator heals everything at the end of a round and gives plain commands only; he vouches for a
dead node (`faults.fail_over`) only where he knows that it is dead and that nothing was acknowledged
without the other. So every violation that the ledger finds is a bug.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon import MIB, CommandFailed, Json, Node, VolumeSpec, process_group_members, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair, is_in_sync
from tests.small_disk import small_disk
from tests.torture.plan import Load, RoundPlan
from tests.wire import CountingProxy

VOLUME = "r0"
SIZE_BYTES = 16 * MIB
BLOCK_BYTES = 4096
#: Short, so that a round of seconds outlasts them; the configuration takes no less for a worker.
TIMEOUTS = {"peer_timeout_s": 2.0, "reconnect_grace_s": 0.5, "worker_timeout_s": 3.0}
#: From the last fault's end until both copies are in sync and served again. A peer that was dropped
#: right after joining waits up to 16 s before it joins again.
WELL_DEADLINE_S = 180.0
#: Exit statuses of a command that was not carried out because of a fault: the daemon is out of
#: reach, it was refused, it timed out.
HINDERED = (3, 5, 6)
#: What no log may hold: a process that ended by a bug of its own.
BUG_MARKS = ("Traceback (most recent call last)", "AssertionError")

Mend = Callable[[], None]


class TortureFailed(AssertionError):
    """A promise was broken, or the pair did not become well again."""


def can_mount() -> bool:
    """Whether this user may mount a small disk to fill up."""
    return os.geteuid() == 0


@dataclass
class Scene:
    """Two nodes that run, one of them primary."""

    pair: Pair
    wire: CountingProxy
    ledger: Ledger
    #: The node that was last known as primary.
    primary: Node
    #: Whether no other fault of this round is at work.
    calm: bool = True
    #: Nodes of which the supervisor is stopped: they answer no command.
    frozen: set[str] = field(default_factory=set)
    clients: list[LedgerClient] = field(default_factory=list)
    _log_read_bytes: dict[str, int] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def make(cls, seed: int) -> Iterator[Scene]:
        """Start two nodes with alpha primary; take everything down at the end."""
        with contextlib.ExitStack() as stack:
            specs = (VolumeSpec(VOLUME, SIZE_BYTES),)
            pair = stack.enter_context(Pair.make(specs, TIMEOUTS, counted=True))
            if can_mount():
                for node in pair.nodes:
                    node.disk_folder = stack.enter_context(small_disk(node.folder / "disk"))
                    node.write_config()
            pair.start_in_sync(primary=pair.alpha)
            assert pair.wire is not None
            book = Ledger(SIZE_BYTES // BLOCK_BYTES, seed=seed, block_bytes=BLOCK_BYTES)
            # The daemons end before their disks are unmounted: this is left first.
            stack.callback(lambda: [node.clean_up() for node in pair.nodes])
            yield cls(pair, pair.wire, book, pair.alpha)

    @property
    def secondary(self) -> Node:
        return self.pair.other(self.primary)

    def answers(self, node: Node) -> bool:
        """Whether the node can be given a command now."""
        return node.process is not None and node.name not in self.frozen

    def worker_pids(self, node: Node) -> list[int]:
        """The node's worker processes, found without asking it."""
        assert node.process is not None
        return [pid for pid in process_group_members(node.process.pid) if _is_worker(pid)]

    # -- clients -----------------------------------------------------------------------------

    def start_clients(self, plan: RoundPlan) -> None:
        """Start one client per load, each on a part of the volume of its own, so that no write of
        a dead connection can meet another client's."""
        share = self.ledger.block_count // len(plan.loads)
        for place, load in enumerate(plan.loads):
            region = range(place * share, (place + 1) * share)
            self.clients.append(self._client(load, region, plan.number, place).start())

    def _client(self, load: Load, region: range, number: int, place: int) -> LedgerClient:
        first, second = self.primary, self.secondary
        uris = [first.uri(), second.tcp_uri()] if place == 0 else [first.tcp_uri(), second.uri()]
        return LedgerClient(
            self.ledger,
            uris,
            seed=2 * number + place,
            depth=load.depth,
            run_blocks=load.run_blocks,
            flush_every=load.flush_every,
            fua_every=load.fua_every,
            zero_every=load.zero_every,
            overlapping=load.overlapping,
            region=region,
            reconnect=True,
        )

    def stop_clients(self) -> None:
        """Let every client get its answers and go; none of them may have seen an error."""
        clients, self.clients = self.clients, []
        for client in clients:
            client.stop()
            assert_no_error_reached(client)

    # -- the operator ------------------------------------------------------------------------

    def order(self, node: Node, *command: str) -> bool:
        """Give a command; return whether it was carried out. Hindered by a fault is no error."""
        done = node.ctl(*command)
        if done.returncode not in (0, *HINDERED):
            raise CommandFailed(
                f"replctl {' '.join(command)} on {node.name} exited with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.returncode == 0

    def promote(self, node: Node, *options: str) -> bool:
        """Try to promote; return whether it was granted."""
        granted = self.order(node, "promote", VOLUME, *options)
        if granted:
            self.primary = node
        return granted

    def become_well(self, preferred: Node) -> None:
        """Start what does not run and wait until both copies are in sync and one is served.

        If nobody is primary, give plain `promote` commands, first on `preferred`.
        """
        for node in self.pair.nodes:
            if node.process is None:
                node.start(wait=False)
        for node in self.pair.nodes:
            node.wait_answering()
        candidates = [preferred, self.pair.other(preferred)]

        def well() -> bool:
            volumes = {node.name: node.volume(VOLUME) for node in self.pair.nodes}
            primaries = [n for n in self.pair.nodes if volumes[n.name]["role"] == "primary"]
            if not primaries:
                candidates.reverse()
                self.promote(candidates[-1])
            assert len(primaries) == 1, f"primaries: {[node.name for node in primaries]}"
            self.primary = primaries[0]
            assert all(is_in_sync(volume) for volume in volumes.values()), _brief(volumes)
            return True

        wait_for(well, WELL_DEADLINE_S, "both copies are in sync and one is served")

    # -- the judge ---------------------------------------------------------------------------

    def judge(self) -> None:
        """Judge the export and both backing files by the book; look for bugs in the logs."""
        assert_promises_kept(self.pair, self.primary, self.ledger)
        for node in self.pair.nodes:
            said = node.log_path.read_bytes()
            new = said[self._log_read_bytes.get(node.name, 0) :].decode(errors="replace")
            self._log_read_bytes[node.name] = len(said)
            for mark in BUG_MARKS:
                if mark in new:
                    raise TortureFailed(f"{node.name}'s log shows a bug of its own: {mark}")


def _is_worker(pid: int) -> bool:
    try:
        return b"repl.node.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _brief(volumes: dict[str, Json]) -> str:
    shown = {
        name: {
            "role": volume["role"],
            "disk_state": volume["disk_state"],
            "peers": [
                {key: peer[key] for key in ("connection_state", "replication_state", "disk_state")}
                for peer in volume["peers"]
            ],
            "why": volume["why"],
        }
        for name, volume in volumes.items()
    }
    return json.dumps(shown)


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to processes of ours, some of which may have ended meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
