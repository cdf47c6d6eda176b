"""Roles asked for and waited for: what the tests of promotion, demotion and resuming share."""

from __future__ import annotations

from repl.core.promotion import PromoteRequest
from tests.core.pair_of_cores import Node, Pair

VOUCH_ALPHA = PromoteRequest(peer_dead="alpha")
LOSE_DATA = PromoteRequest(lose_data=True)


def promote(node: Node, request: PromoteRequest | None = None) -> str:
    """Ask and wait; return the refusal's code, or "" for a yes."""
    number = node.promote(request)
    node.pair.run()
    verdict = node.answers[number]
    assert verdict.ok == (verdict.code == "") == node.volume.is_primary, verdict
    assert verdict.reason
    return verdict.code


def left(pair: Pair, node: Node) -> None:
    """A clean stop, up to the last commit."""
    number = node.leave()
    pair.run()
    assert number in node.answers
    closed: list[bool] = []
    node.begin_turn().close(lambda: closed.append(True))
    pair.run()
    assert closed


def contact_until_rest(pair: Pair) -> None:
    """Connect again as often as a side asks for another handshake."""
    for _ in range(4):
        if not pair.alpha.connected and not pair.beta.connected:
            pair.connect()
        pair.run()
