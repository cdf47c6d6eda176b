"""A volume whose peer is taken out of its configuration for a while, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.daemon import MIB, Node, VolumeSpec
from tests.libnbd import load
from tests.pair import Pair

BLOCK = 4096


@pytest.fixture
def tiny_pair() -> Iterator[Pair]:
    with Pair.make((VolumeSpec("r0", 16 * MIB),)) as pair:
        pair.start_in_sync(primary=pair.alpha)
        yield pair


def write(node: Node, offset: int, fill: bytes) -> None:
    handle = load().NBD()
    handle.connect_uri(node.uri())
    handle.pwrite(fill * BLOCK, offset)
    handle.flush()
    handle.shutdown()


def left_alone(pair: Pair) -> list[str]:
    pair.beta.kill()
    write(pair.alpha, BLOCK, b"b")
    pair.alpha.stop()
    return []


def holding_the_release(pair: Pair) -> list[str]:
    pair.alpha.ctl_ok("demote", "r0")
    pair.beta.promote()
    pair.wait_in_sync()
    assert [pair.beta.stop(), pair.alpha.stop()] == [0, 0]
    return []


def with_loss_of_data(pair: Pair) -> list[str]:
    pair.alpha.kill()
    pair.beta.kill()
    return ["--lose-data", "r0"]


@pytest.mark.parametrize(
    "parted",
    [
        left_alone,
        pytest.param(holding_the_release, marks=pytest.mark.slow),
        pytest.param(with_loss_of_data, marks=pytest.mark.slow),
    ],
)
def test_peer_that_was_not_configured_for_a_while_misses_nothing(
    tiny_pair: Pair, parted: Callable[[Pair], list[str]]
) -> None:
    pair, alpha = tiny_pair, tiny_pair.alpha
    options = parted(pair)
    peer, alpha.peer = alpha.peer, None
    alpha.write_config()
    alpha.start()
    alpha.promote("r0", *options)
    write(alpha, MIB, b"c")
    alpha.stop()
    alpha.peer = peer
    alpha.write_config()
    pair.start()
    pair.wait_in_sync()
    pair.assert_copies_equal()
