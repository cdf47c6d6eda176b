"""A pair of cores in a split-brain, an operator's order to resolve it, and how it must end."""

from __future__ import annotations

from repl.core.states import Phase
from repl.errors import CODES
from tests.core.asking import contact_until_rest
from tests.core.every_phase import split_pair
from tests.core.pair_of_cores import BLOCK, Node, Pair, data


def split(*, primaries: bool = False) -> Pair:
    """alpha wrote 1s and beta 2s into block 0; block 1 is alpha's alone, block 2 beta's.

    Into block 5 both wrote the same bytes.
    """
    pair = split_pair()
    pair.alpha.write(BLOCK, data(3))
    pair.beta.write(2 * BLOCK, data(4))
    for node in pair.nodes:
        node.write(5 * BLOCK, data(8))
    pair.run()
    if not primaries:
        for node in pair.nodes:
            demoted(node)
    pair.connect()
    pair.run()
    assert all(node.session.phase is Phase.SPLIT_BRAIN for node in pair.nodes)
    return pair


def demoted(node: Node) -> None:
    number = node.demote()
    node.pair.run()
    assert node.answers[number].ok


def named(pair: Pair, name: str) -> Node:
    return pair.alpha if name == "alpha" else pair.beta


def resolve(node: Node, keep: str) -> int:
    """Order it; nothing has moved yet."""
    return node.ask(lambda number: node.volume.resolve(number, keep))


def code(node: Node, number: int) -> str:
    """The refusal's code, "" for a yes."""
    verdict = node.answers[number]
    assert verdict.ok == (verdict.code == ""), verdict
    assert verdict.ok or verdict.code in CODES
    return verdict.code


def until(pair: Pair, what: str) -> None:
    """Go on until either node has sent a frame of this type, and no further."""
    for _ in range(2000):
        for node in pair.nodes:
            node.step()
            if any(event == f"send {what}" for event, _ in node.events):
                return
    raise AssertionError(f"{what} was never sent")


def forget_events(pair: Pair) -> None:
    for node in pair.nodes:
        node.events.clear()


def assert_kept(pair: Pair, keep: str) -> None:
    """After contact everybody holds what `keep` held, and nothing of the other's."""
    contact_until_rest(pair)
    fill = (1, 3, 0) if keep == "alpha" else (2, 0, 4)
    for node in pair.nodes:
        assert node.session.phase is Phase.ESTABLISHED, node.session.phase
        for block, byte in enumerate(fill):
            assert node.disk[block * BLOCK] == byte, (node.name, block)
        assert not node.broken, node.broken
    assert pair.equal()
    kept, other = named(pair, keep).volume.facts, named(pair, keep).other.volume.facts
    assert kept.lineage == other.lineage and not other.inconsistent and not other.outdated
