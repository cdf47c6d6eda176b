"""What our processes keep in memory for a huge, sparse volume that is in sync and idle."""

from __future__ import annotations

from bench.accounting import pss_bytes
from bench.results import Memory
from tests.daemon import Node, VolumeSpec, process_group_members
from tests.pair import Pair

VOLUME_BYTES = 1 << 40


def node_memory(node: Node, volume_bytes: int) -> Memory:
    """Measure a running node with one volume."""
    assert node.process is not None
    worker = node.worker_pid()
    supervisor = node.process.pid
    assert set(process_group_members(supervisor)) == {supervisor, worker}, "nothing is left out"
    return Memory(
        volume_bytes=volume_bytes,
        supervisor_bytes=pss_bytes(supervisor),
        worker_bytes=pss_bytes(worker),
    )


def measure() -> Memory:
    """Bring up a pair with a volume of 1 TiB and look at its primary."""
    with Pair.make((VolumeSpec("r0", VOLUME_BYTES),)) as pair:
        pair.start_in_sync(primary=pair.alpha)
        return node_memory(pair.alpha, VOLUME_BYTES)
