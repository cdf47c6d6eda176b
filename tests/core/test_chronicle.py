"""What happens to a pair of volumes is told: each thing once, with what a person wants to know."""

from __future__ import annotations

from typing import Any

from repl.core.promotion import PromoteRequest
from repl.core.wire import PeerError
from repl.events import EVENTS
from tests.core.every_phase import at, behind_pair, split_pair
from tests.core.pair_of_cores import Node, Pair, data, established_pair


def since(node: Node, place: int) -> list[str]:
    return [note.code for note in node.told[place:] if note.code]


def changes(node: Node) -> list[dict[str, Any]]:
    return [note.fields for note in node.told if note.code == "SET_CHANGED"]


def test_first_contact_is_told_from_connection_to_sync() -> None:
    pair = Pair()
    pair.connect()
    pair.run()
    for node in pair.nodes:
        assert node.codes == ["PEER_CONNECTED", "SET_CHANGED", "PEER_IN_SYNC"]
        [change] = changes(node)
        assert change["members"] == ["alpha", "beta"]
        assert change["origin"] == "first-contact"


def test_every_event_has_a_registered_code_and_its_severity() -> None:
    pair = split_pair()
    pair.connect()
    pair.run()
    for node in pair.nodes:
        for note in node.told:
            if note.code:
                assert note.level == EVENTS[note.code][0]
            assert note.text


def test_a_promotion_is_told_with_its_evidence_and_who_gave_it() -> None:
    pair = established_pair()
    pair.cut()
    pair.run()
    pair.beta.promote(PromoteRequest(peer_dead="alpha", by="uid 0"))
    pair.run()
    told = pair.beta.event("PROMOTED").fields
    assert told["evidence"] == "an operator vouched that alpha is stopped (uid 0)"
    assert (told["peer_dead"], told["by"]) == ("alpha", "uid 0")
    assert told["contact_lost_s"] == pair.beta.volume.facts.peer("alpha").contact_lost_s > 0
    assert changes(pair.beta)[-1] | {"generation_id": ""} == {
        "generation": pair.beta.volume.facts.generation.counter,
        "generation_id": "",
        "members": ["beta"],
        "joined": [],
        "left": ["alpha"],
        "origin": "peer-dead",
        "why": "an operator vouched that alpha is stopped (uid 0)",
    }
    assert pair.beta.codes[-1] == "ROLE_PRIMARY"


def test_a_promotion_that_loses_data_is_told_as_such() -> None:
    node = at("target")
    node.promote(PromoteRequest(lose_data=True, accept_half_copied=True, by="uid 5"))
    node.pair.run()
    told = node.event("PROMOTED").fields
    assert told["lose_data"] and told["accept_half_copied"] and told["by"] == "uid 5"
    assert "half copied" in told["evidence"]


def test_a_loss_and_a_join_are_told_with_who_left_and_who_joined() -> None:
    pair = behind_pair()
    left = changes(pair.alpha)[-1]
    assert (left["left"], left["joined"], left["members"]) == (["beta"], [], ["alpha"])
    assert left["why"] == "manual: beta did not answer"
    place = len(pair.alpha.told)
    pair.connect()
    pair.run()
    joined = changes(pair.alpha)[-1]
    assert (joined["left"], joined["joined"]) == ([], ["beta"])
    assert since(pair.alpha, place) == [
        "PEER_CONNECTED",
        "RESYNC_STARTED",
        "SET_CHANGED",
        "RESYNC_FINISHED",
        "PEER_IN_SYNC",
    ]
    started, finished = pair.alpha.event("RESYNC_STARTED"), pair.alpha.event("RESYNC_FINISHED")
    assert started.fields["bytes"] == finished.fields["done_bytes"] > 0
    assert (started.fields["source"], started.fields["target"]) == ("alpha", "beta")
    assert pair.beta.event("RESYNC_STARTED").fields["source"] == "alpha"


def test_an_interrupted_copy_is_told_with_what_remains() -> None:
    node = at("source")
    node.pair.cut()
    node.pair.run()
    for each in node.pair.nodes:
        fields = each.event("RESYNC_INTERRUPTED").fields
        assert fields["remaining_bytes"] > 0
        assert each.event("PEER_DISCONNECTED").fields["reason"] == "cut"


def test_a_refusal_is_told_once_however_often_it_is_repeated() -> None:
    node = at("refused")
    pair = node.pair
    for _ in range(3):
        pair.cut()
        pair.connect()
        pair.run()
    for each in pair.nodes:
        assert each.codes.count("PEER_REFUSED") == 1
        assert "PEER_DISCONNECTED" not in each.codes


def test_a_split_brain_is_told_once_and_its_end_too() -> None:
    pair = split_pair()
    for _ in range(2):
        pair.connect()
        pair.run()
        pair.cut()
    for each in pair.nodes:
        assert each.codes.count("SPLIT_BRAIN_FOUND") == 1
        assert each.session.told.split


def test_copies_with_one_history_after_a_split_are_told() -> None:
    pair = behind_pair()
    pair.alpha.session.told.split = True
    pair.connect()
    pair.run()
    assert pair.alpha.codes.count("SPLIT_BRAIN_RESOLVED") == 1
    assert "SPLIT_BRAIN_RESOLVED" not in pair.beta.codes


def test_a_failed_disk_and_a_lost_cache_are_told() -> None:
    pair = established_pair()
    pair.beta.begin_turn().disk_failed("write: Input/output error")
    pair.run()
    assert "Input/output error" in pair.beta.event("DISK_FAILED").text
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.restart(pair.alpha, power_loss=True)
    pair.run()
    assert pair.alpha.codes.count("CACHE_LOST") == 1
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.run()
    assert "CACHE_LOST" not in pair.alpha.codes, "a crash of the process loses no cache"


def test_roles_are_told_when_they_change() -> None:
    pair = established_pair()
    assert pair.alpha.codes.count("ROLE_PRIMARY") == 1
    pair.alpha.demote()
    pair.run()
    assert pair.alpha.codes[-1] == "ROLE_SECONDARY"


def test_a_peer_that_breaks_the_protocol_is_told() -> None:
    pair = established_pair()
    pair.alpha.begin_turn()
    pair.alpha.session.broke_protocol(PeerError("WRITE: nonsense"))
    pair.run()
    assert "nonsense" in pair.alpha.event("PEER_BROKE_PROTOCOL").text
