"""A pair of cores brought into each phase of a connection, and the node that is in it."""

from __future__ import annotations

from collections.abc import Callable

from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from tests.core.pair_of_cores import Node, Pair, data, established_pair

Stage = Callable[[], Node]


def behind_pair() -> Pair:
    """alpha went on alone and wrote; beta is behind. Not connected."""
    pair = established_pair()
    pair.cut()
    pair.alpha.write(0, data(1))
    pair.advance(2.0)
    assert pair.alpha.volume.facts.alone
    return pair


def split_pair() -> Pair:
    """Both acknowledged writes that the other lacks. Not connected."""
    pair = behind_pair()
    pair.beta.promote(PromoteRequest(peer_dead="alpha"))
    pair.run()
    pair.beta.write(0, data(2))
    pair.run()
    return pair


def down() -> Node:
    return established_pair_cut().alpha


def established_pair_cut() -> Pair:
    pair = established_pair()
    pair.cut()
    return pair


def greeting() -> Node:
    pair = behind_pair()
    pair.beta.hold_incoming = True
    pair.connect()
    return pair.alpha


def greeting_decided() -> Node:
    """alpha has both hellos, but its decision waits for a commit; beta has none yet."""
    pair = behind_pair()
    pair.alpha.hold_commits = True
    pair.beta.hold_incoming = True
    pair.connect()
    pair.run()
    assert pair.alpha.commit is not None
    return pair.alpha


def idle() -> Node:
    pair = Pair(known_zeroes=False)
    pair.connect()
    pair.run()
    return pair.alpha


def refused() -> Node:
    pair = Pair()
    for node in pair.nodes:
        node.adopt()
    pair.run()
    pair.connect()
    pair.run()
    return pair.alpha


def split_brain() -> Node:
    pair = split_pair()
    pair.connect()
    pair.run()
    return pair.alpha


def source_starting() -> Node:
    pair = behind_pair()
    pair.connect()
    _run_until(pair, pair.beta, Phase.TARGET_STARTING)
    pair.beta.hold_commits = True
    pair.run()
    return pair.alpha


def target_starting() -> Node:
    return source_starting().other


def source() -> Node:
    pair = behind_pair()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    return pair.alpha


def target() -> Node:
    return source().other


def settle_target() -> Node:
    pair = established_pair()
    pair.alpha.write(0, data(3))
    pair.run()
    pair.restart(pair.beta)
    pair.run()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    return pair.beta


def first_copy_target() -> Node:
    """A fresh node that receives its first copy: it holds no generation."""
    pair = Pair()
    pair.alpha.adopt()
    pair.run()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    return pair.beta


def joining() -> Node:
    pair = behind_pair()
    pair.connect()
    _run_until(pair, pair.alpha, Phase.JOINING)
    pair.beta.hold_commits = True
    pair.run()
    return pair.alpha


def established_primary() -> Node:
    return established_pair().alpha


def established_secondary() -> Node:
    return established_pair().beta


STAGES: dict[str, tuple[Stage, Phase]] = {
    "down": (down, Phase.DOWN),
    "greeting": (greeting, Phase.GREETING),
    "greeting-decided": (greeting_decided, Phase.GREETING),
    "idle": (idle, Phase.IDLE),
    "refused": (refused, Phase.REFUSED),
    "split-brain": (split_brain, Phase.SPLIT_BRAIN),
    "source-starting": (source_starting, Phase.SOURCE_STARTING),
    "source": (source, Phase.SOURCE),
    "joining": (joining, Phase.JOINING),
    "target-starting": (target_starting, Phase.TARGET_STARTING),
    "target": (target, Phase.TARGET),
    "settle-target": (settle_target, Phase.TARGET),
    "first-copy-target": (first_copy_target, Phase.TARGET),
    "established-primary": (established_primary, Phase.ESTABLISHED),
    "established-secondary": (established_secondary, Phase.ESTABLISHED),
}


def at(stage: str) -> Node:
    """Build a new pair and return the node that is at this stage."""
    build, phase = STAGES[stage]
    node = build()
    assert node.session.phase is phase, (stage, node.session.phase)
    return node


def _run_until(pair: Pair, node: Node, phase: Phase) -> None:
    for _ in range(1000):
        for each in pair.nodes:
            each.step()
            if node.session.phase is phase:
                return
    raise AssertionError(f"{node.name} never came to {phase.value}")
