"""Two real `repld` on loopback, in a temporary folder, cleaned up whatever happens.

    with Pair.make() as pair:
        pair.start_in_sync(primary=pair.alpha)
        ...
        pair.assert_copies_equal()

Leaving the `with` block kills both process groups and fails if a process of them is left.
"""

from __future__ import annotations

import contextlib
import filecmp
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import PORTS, STATE_DEADLINE_S, Json, Node, Place, VolumeSpec
from tests.wire import CountingProxy


def is_in_sync(volume: Json) -> bool:
    """Whether a volume's status says that this copy and its peer's are both whole and joined."""
    (peer,) = volume["peers"]
    return bool(
        volume["disk_state"] == "up-to-date"
        and peer["connection_state"] == "connected"
        and peer["replication_state"] == "established"
        and peer["disk_state"] == "up-to-date"
        and peer["out_of_sync_bytes"] == 0
    )


@dataclass
class Pair:
    """Two nodes, alpha and beta, that mirror the same volumes."""

    folder: Path
    alpha: Node
    beta: Node
    wire: CountingProxy | None = None

    @classmethod
    @contextlib.contextmanager
    def make(
        cls,
        volumes: tuple[VolumeSpec, ...] = (VolumeSpec(),),
        timeouts: dict[str, float] | None = None,
        *,
        counted: bool = False,
        places: Mapping[str, Place] | None = None,
    ) -> Iterator[Pair]:
        """Prepare two nodes that do not run yet; clean everything up at the end.

        counted: put a `CountingProxy` between them, `pair.wire`. places: by the nodes' names, where
        they are on the network; on loopback unless given.
        """
        # Short, because the path of a Unix socket ends at 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="repl-pair-"))
        alpha = Node("alpha", folder / "alpha", volumes, timeouts=timeouts or {})
        beta = Node("beta", folder / "beta", volumes, timeouts=timeouts or {})
        alpha.peer = ("beta", beta.peer_port)
        beta.peer = ("alpha", alpha.peer_port)
        pair = cls(folder, alpha, beta)
        for node in pair.nodes:
            node.place = (places or {}).get(node.name, node.place)
            pair.other(node).peer_address = node.place.address
        with contextlib.ExitStack() as stack:
            if counted:
                # The node whose name sorts lower dials: alpha.
                alpha.peer = ("beta", PORTS.take())
                proxy = CountingProxy(alpha.peer[1], beta.peer_port)
                pair.wire = stack.enter_context(proxy)
            with pair._running():
                yield pair

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Write the configurations; afterwards take everything down."""
        for node in self.nodes:
            node.write_config()
        try:
            yield
        except BaseException:
            for node in self.nodes:
                print(node.log_tail(100))
            raise
        finally:
            survivors = self.alpha.clean_up() + self.beta.clean_up()
            shutil.rmtree(self.folder, ignore_errors=True)
            assert not survivors, f"processes that no SIGKILL ends: {survivors}"

    @property
    def nodes(self) -> tuple[Node, Node]:
        return (self.alpha, self.beta)

    def other(self, node: Node) -> Node:
        return self.beta if node is self.alpha else self.alpha

    def start(self) -> None:
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_answering()

    def start_in_sync(
        self, primary: Node | None = None, volumes: tuple[str, ...] = ("r0",)
    ) -> None:
        """Start both, wait until they are in sync, and promote one of them if named."""
        self.start()
        for volume in volumes:
            self.wait_in_sync(volume)
            if primary is not None:
                primary.promote(volume)
                self.wait_in_sync(volume)

    def wait_in_sync(self, volume: str = "r0", deadline_s: float = STATE_DEADLINE_S) -> None:
        for node in self.nodes:
            node.wait_volume(is_in_sync, "is in sync", volume, deadline_s)

    def copies_equal(self, volume: str = "r0") -> bool:
        """Whether both backing files are byte-equal now; call it while no write is under way."""
        filecmp.clear_cache()
        return filecmp.cmp(self.alpha.backing(volume), self.beta.backing(volume), shallow=False)

    def assert_copies_equal(self, volume: str = "r0") -> None:
        assert self.copies_equal(volume), f"the two copies of {volume} differ"
