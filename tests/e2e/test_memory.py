"""What a node keeps in memory for a volume that is huge, sparse and in sync."""

from __future__ import annotations

from bench.memory import VOLUME_BYTES, node_memory
from bench.report import MEMORY_BYTES_MAX
from tests.daemon import VolumeSpec
from tests.pair import Pair


def test_clean_map_of_a_tebibyte_costs_no_memory() -> None:
    with Pair.make((VolumeSpec("r0", VOLUME_BYTES),)) as pair:
        pair.start_in_sync(primary=pair.alpha)
        for node in pair.nodes:
            assert node_memory(node, VOLUME_BYTES).total_bytes < MEMORY_BYTES_MAX
