"""What people are shown of a split-brain: both sides' doings, the same on either node, no lie."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from repl.core.divergence import (
    CLIENT_NAME_MAX,
    CLIENTS_TOLD,
    GENERATIONS_SHOWN,
    TELL_INTERVAL_S,
)
from repl.core.lineage import Origin
from repl.core.snapshot import split_brain_snapshot
from repl.core.wire import PeerError, Type
from tests.core.asking import LOSE_DATA, promote
from tests.core.every_phase import at, split_pair
from tests.core.pair_of_cores import BLOCK, Node, Pair, data


def connected(pair: Pair) -> Pair:
    pair.connect()
    pair.run()
    return pair


def shown(node: Node) -> dict[str, Any]:
    """The object as a client reads it: through strict JSON."""
    read: dict[str, Any] = json.loads(json.dumps(split_brain_snapshot(node.volume)))
    assert read["split_brain"]
    return read


def side(found: dict[str, Any], name: str) -> dict[str, Any]:
    [chosen] = [side for side in found["sides"] if side["node"] == name]
    assert isinstance(chosen, dict)
    return chosen


COMMON = ("fork", "sides", "differing_bytes_at_most", "differing_known_from_maps")


def test_both_nodes_show_the_same() -> None:
    pair = split_pair()
    # The primary alone marked the generation that both hold as answered.
    fork = pair.alpha.volume.facts.lineage[1]
    facts = pair.alpha.begin_turn().facts
    marked = (facts.lineage[0], replace(fork, answered=True), *facts.lineage[2:])
    pair.alpha.volume.change_facts(lineage=marked)
    connected(pair)
    alpha, beta = shown(pair.alpha), shown(pair.beta)
    assert alpha["fork"]["answered"]
    assert [alpha[key] for key in COMMON] == [beta[key] for key in COMMON]
    assert (alpha["node"], alpha["peer"]) == (beta["peer"], beta["node"]) == ("alpha", "beta")


def test_the_fork_and_each_sides_generations_are_named() -> None:
    pair = connected(split_pair())
    found = shown(pair.beta)
    assert found["fork"]["members"] == ["alpha", "beta"]
    [alone] = side(found, "alpha")["generations"]
    [vouched] = side(found, "beta")["generations"]
    assert (alone["origin"], alone["members"], alone["answered"]) == ("alone", ["alpha"], True)
    assert (vouched["origin"], vouched["primary"]) == ("peer-dead", "beta")
    assert "vouched that alpha is stopped" in vouched["permit"]
    assert found["fork"]["counter"] == alone["counter"] - 1 == vouched["counter"] - 1
    assert alone["made_at_s"] > 1000


def test_the_amounts_are_those_of_both_maps_and_of_their_union() -> None:
    pair = split_pair()
    pair.alpha.write(BLOCK, data(1, 2 * BLOCK))
    pair.beta.write(2 * BLOCK, data(2, 3 * BLOCK))
    connected(pair)
    found = shown(pair.alpha)
    # Block 0 was written by both before; alpha also has 1 and 2, beta 2, 3 and 4. What beta held
    # of the extents that were hot when contact was lost counts as its own, too.
    mine = pair.alpha.volume.maps.dirty["beta"]
    theirs = pair.beta.volume.maps.dirty["alpha"]
    union = mine.copy()
    union.merge(theirs)
    assert side(found, "alpha")["changed_bytes_at_most"] == mine.set_bytes >= 3 * BLOCK
    assert side(found, "beta")["changed_bytes_at_most"] == theirs.set_bytes >= 4 * BLOCK
    assert found["differing_bytes_at_most"] == union.set_bytes < mine.set_bytes + theirs.set_bytes
    assert found["differing_known_from_maps"]


def test_what_is_written_meanwhile_is_shown_on_the_other_node_too() -> None:
    pair = connected(split_pair())
    before = side(shown(pair.beta), "alpha")["changed_bytes_at_most"]
    pair.alpha.write(100 * BLOCK, data(1))
    pair.alpha.volume.client_names = ["10.0.0.9:1234"]
    pair.run()
    pair.advance(2 * TELL_INTERVAL_S)
    found = side(shown(pair.beta), "alpha")
    assert found["changed_bytes_at_most"] == before + BLOCK
    assert (found["clients"], found["client_names"]) == (1, ["10.0.0.9:1234"])
    assert side(shown(pair.alpha), "alpha")["clients"] == 1


def test_nothing_is_told_again_that_was_told_already() -> None:
    pair = connected(split_pair())
    for node in pair.nodes:
        node.sent.clear()
    pair.advance(10 * TELL_INTERVAL_S)
    told = {header.type for node in pair.nodes for header in node.sent}
    assert told <= {Type.PING, Type.PONG}


def test_a_forced_copy_has_no_map_and_the_whole_volume_may_differ() -> None:
    pair = split_pair()
    number = pair.beta.demote()
    pair.run()
    assert pair.beta.answers[number].ok
    assert promote(pair.beta, LOSE_DATA) == ""
    pair.beta.write(0, data(2))
    pair.run()
    connected(pair)
    found = shown(pair.alpha)
    assert side(found, "beta")["changed_bytes_at_most"] is None
    assert side(found, "alpha")["changed_bytes_at_most"] is not None
    assert not found["differing_known_from_maps"]
    assert found["differing_bytes_at_most"] == found["size_bytes"]
    origins = [entry["origin"] for entry in side(found, "beta")["generations"]]
    assert origins == [Origin.DATA_LOST.value, Origin.PEER_DEAD.value]


def test_roles_and_disk_states_of_both_sides_are_known() -> None:
    pair = connected(split_pair())
    for node in pair.nodes:
        for shown_side in shown(node)["sides"]:
            assert (shown_side["role"], shown_side["disk_state"]) == ("primary", "up-to-date")
    number = pair.beta.demote()
    pair.run()
    assert pair.beta.answers[number].ok
    assert side(shown(pair.alpha), "beta")["role"] == "secondary"


def test_a_long_history_is_shown_from_both_its_ends() -> None:
    pair = split_pair()
    for _ in range(GENERATIONS_SHOWN + 5):
        number = pair.beta.demote()
        pair.run()
        assert pair.beta.answers[number].ok
        assert promote(pair.beta, LOSE_DATA) == ""
    pair.beta.write(0, data(2))
    pair.run()
    found = side(shown(connected(pair).alpha), "beta")
    counters = [entry["counter"] for entry in found["generations"]]
    assert len(counters) == GENERATIONS_SHOWN
    assert found["generations_left_out"] == 6
    assert counters[-1] == shown(pair.alpha)["fork"]["counter"] + 1
    assert counters[0] == pair.beta.volume.facts.generation.counter


def test_many_clients_with_long_names_are_cut_short_on_the_wire() -> None:
    pair = split_pair()
    pair.beta.volume.client_names = ["x" * 500] * (CLIENTS_TOLD + 9)
    connected(pair)
    found = side(shown(pair.alpha), "beta")
    assert found["clients"] == CLIENTS_TOLD + 9
    assert found["client_names"] == ["x" * CLIENT_NAME_MAX] * CLIENTS_TOLD
    assert not pair.alpha.broken


@pytest.mark.parametrize(("page_no", "length"), [(99, 4032), (0, 4031), (0, 0)])
def test_a_page_that_does_not_fit_drops_the_peer(page_no: int, length: int) -> None:
    with pytest.raises(PeerError):
        at("split-brain").feed(Type.MAP, offset=page_no, payload=bytes(length))
