"""Status as JSON: the public spellings, in every phase, and never a lie about the disk."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from repl.core.outbox import Outbox
from repl.core.snapshot import volume_snapshot
from repl.core.states import ConnectionState, DiskState, ReplicationState, Role
from repl.errors import CODES
from tests.core.every_phase import STAGES, at, behind_pair
from tests.core.pair_of_cores import EXTENT, SIZE, Node, Pair, data, established_pair

EXPECTED = {
    "down": ("disconnected", "off"),
    "greeting": ("connecting", "off"),
    "greeting-decided": ("connecting", "off"),
    "idle": ("connected", "off"),
    "refused": ("refused", "off"),
    "split-brain": ("split-brain", "off"),
    "source-starting": ("connected", "sync-source"),
    "source": ("connected", "sync-source"),
    "joining": ("connected", "settling"),
    "target-starting": ("connected", "sync-target"),
    "target": ("connected", "sync-target"),
    "settle-target": ("connected", "settling"),
    "first-copy-target": ("connected", "sync-target"),
    "established-primary": ("connected", "established"),
    "established-secondary": ("connected", "established"),
}


def snapshot(node: Node, cut_by: str = "") -> dict[str, Any]:
    """The object as a client reads it: through strict JSON."""
    text = json.dumps(volume_snapshot(node.volume, cut_by), allow_nan=False)
    read: dict[str, Any] = json.loads(text)
    return read


@pytest.mark.parametrize("stage", STAGES)
def test_every_phase_is_shown_in_the_public_spelling(stage: str) -> None:
    shown = snapshot(at(stage))
    assert shown["name"] == "r0"
    assert shown["size_bytes"] == SIZE
    assert shown["role"] in {role.value for role in Role}
    assert shown["disk_state"] in {state.value for state in DiskState}
    assert set(shown["generation"]) == {"counter", "id", "origin", "permit", "made_at_s"}
    [peer] = shown["peers"]
    assert (peer["connection_state"], peer["replication_state"]) == EXPECTED[stage]
    assert peer["connection_state"] in {state.value for state in ConnectionState}
    assert peer["replication_state"] in {state.value for state in ReplicationState}
    assert peer["disk_state"] in {state.value for state in DiskState} | {"unknown"}
    assert peer["role"] in {role.value for role in Role} | {"unknown"}
    assert 0 <= peer["out_of_sync_bytes"] <= SIZE


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_is_not_promotable_says_why_and_what_next(stage: str) -> None:
    promotable = snapshot(at(stage))["promotable"]
    assert promotable["reason"]
    if promotable["ok"]:
        assert promotable["code"] == ""
    else:
        assert promotable["code"] in CODES
        assert promotable["next"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_is_shown_with_its_progress_only_while_it_goes_on(stage: str) -> None:
    [peer] = snapshot(at(stage))["peers"]
    if stage in ("source", "target", "settle-target", "first-copy-target"):
        assert set(peer["resync"]) >= {"done_bytes", "remaining_bytes", "rate_bytes_per_s", "eta_s"}
        assert peer["resync"]["remaining_bytes"] == peer["out_of_sync_bytes"] > 0
    else:
        assert peer["resync"] is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_volume_that_is_not_in_sync_says_why(stage: str) -> None:
    shown = snapshot(at(stage))
    if EXPECTED[stage] != ("connected", "established") and stage not in (
        "source-starting",
        "target-starting",
        "joining",
    ):
        assert shown["why"], shown
        assert shown["next"], shown


def effects_of(outbox: Outbox) -> dict[str, object]:
    """What it asks for."""
    return {name: getattr(outbox, name) for name in dir(outbox) if not name.startswith("_")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_snapshot_changes_nothing(stage: str) -> None:
    node = at(stage)
    facts, effects = node.volume.facts, deepcopy(effects_of(node.volume.outbox))
    assert snapshot(node) == snapshot(node)
    assert node.volume.facts is facts
    assert effects_of(node.volume.outbox) == effects


def test_disk_states_follow_the_facts() -> None:
    pair = Pair()
    assert snapshot(pair.alpha)["disk_state"] == "inconsistent", "it holds no data"
    pair = established_pair()
    assert snapshot(pair.alpha)["disk_state"] == snapshot(pair.beta)["disk_state"] == "up-to-date"
    pair.cut()
    assert snapshot(pair.beta)["disk_state"] == "consistent", "it cannot know by itself"
    assert snapshot(at("target"))["disk_state"] == "inconsistent"
    assert snapshot(at("settle-target"))["disk_state"] == "consistent"


def test_a_failed_copy_is_shown_as_failed_with_its_reason() -> None:
    pair = established_pair()
    pair.alpha.begin_turn().disk_failed("write: No space left on device")
    pair.run()
    shown = snapshot(pair.alpha)
    assert (shown["disk_state"], shown["serving"]) == ("failed", False)
    assert "No space left" in shown["why"]
    assert "adopt r0 --discard" in shown["next"]


def test_peers_show_each_others_role_and_disk_state() -> None:
    pair = established_pair()
    [peer] = snapshot(pair.beta)["peers"]
    assert (peer["role"], peer["disk_state"]) == ("primary", "up-to-date")
    [peer] = snapshot(pair.alpha)["peers"]
    assert (peer["role"], peer["disk_state"]) == ("secondary", "up-to-date")


def test_out_of_sync_bytes_are_those_of_the_dirty_map() -> None:
    pair = behind_pair()
    pair.alpha.write(0, data(1, 64 << 10))
    pair.run()
    [peer] = snapshot(pair.alpha)["peers"]
    assert peer["out_of_sync_bytes"] >= 64 << 10
    assert peer["out_of_sync_bytes"] == pair.alpha.volume.maps.dirty["beta"].set_bytes


def test_a_frozen_primary_is_shown_as_frozen_with_what_waits() -> None:
    node = at("joining")
    node.write(0, data(1))
    shown = snapshot(node)
    assert shown["serving"] and shown["frozen"]
    assert shown["pending_requests"] == 1


def test_what_a_crash_would_have_to_compare_is_shown_suspects_included() -> None:
    pair = established_pair()
    pair.alpha.write(EXTENT, data(1))
    pair.run()
    assert snapshot(pair.alpha)["intent_bytes"] == EXTENT
    pair.restart(pair.alpha)
    pair.run()
    shown = snapshot(pair.alpha)
    assert (shown["hot_extents"], shown["intent_bytes"]) == (0, EXTENT)


def test_promotable_is_what_a_plain_promotion_would_be_told() -> None:
    pair = established_pair(primary=False)
    assert snapshot(pair.alpha)["promotable"]["ok"] and snapshot(pair.beta)["promotable"]["ok"]
    pair.alpha.promote()
    pair.run()
    assert snapshot(pair.alpha)["promotable"]["ok"], "it is primary already"
    beside = snapshot(pair.beta)["promotable"]
    assert (beside["ok"], beside["reason"]) == (False, "alpha is primary")
    assert beside["next"] == "on alpha: replctl demote r0"


def cut_off_pair() -> Pair:
    """Alpha was primary; beta cannot reach it any more."""
    pair = established_pair()
    pair.cut()
    pair.run()
    return pair


def test_a_cut_off_secondary_is_told_how_it_may_serve() -> None:
    shown = snapshot(cut_off_pair().beta)
    assert "start repld on alpha" in shown["next"]
    assert shown["next"].endswith(
        "if alpha is known to be stopped: replctl promote r0 --peer-dead alpha"
    )


def test_a_node_that_accepts_connections_and_hangs_is_no_slow_peer() -> None:
    pair = cut_off_pair()
    pair.alpha.hold_incoming = pair.beta.hold_incoming = True
    pair.connect()
    pair.run()
    pair.beta.begin_turn()
    pair.beta.volume.now += 4.0
    shown = snapshot(pair.beta)
    [peer] = shown["peers"]
    assert (peer["phase"], peer["slow_s"]) == ("greeting", None)
    assert shown["why"] == "alpha has not answered on a new connection yet"
    assert "hangs" in shown["next"]
    assert "promote r0 --peer-dead alpha" in shown["next"]


def test_a_released_secondary_is_told_that_a_plain_promotion_will_do() -> None:
    pair = established_pair()
    pair.alpha.leave()
    pair.run()
    pair.cut()
    pair.run()
    shown = snapshot(pair.beta)
    assert shown["promotable"]["ok"]
    assert shown["next"].endswith("to serve here meanwhile: replctl promote r0")


def test_a_copy_that_vouching_does_not_help_is_not_offered_it() -> None:
    pair = behind_pair()
    target = next(node for node in pair.nodes if not node.volume.is_primary)
    pair.connect()
    for _ in range(1000):
        target.step()
        target.other.step()
        if target.volume.facts.inconsistent:
            break
    pair.cut()
    pair.run()
    assert target.volume.facts.inconsistent
    assert "--peer-dead" not in snapshot(target)["next"]


def test_a_volume_that_an_operator_disconnected_says_so_and_how_to_connect_it() -> None:
    pair = cut_off_pair()
    shown = snapshot(pair.beta, "an operator (uid 0)")
    assert shown["cut_by"] == "an operator (uid 0)"
    assert shown["why"] == "an operator (uid 0) disconnected r0 from alpha"
    assert shown["next"].startswith(
        "replctl connect r0; if alpha is known to be stopped: replctl promote "
    )
    shown = snapshot(pair.alpha, "an operator (uid 0)")
    assert shown["next"] == "replctl connect r0"


def test_a_split_brain_is_not_forgotten_with_its_connection() -> None:
    node = at("split-brain")
    node.pair.cut()
    node.pair.run()
    shown = snapshot(node)
    assert "at the last contact this copy and that on " in shown["why"]
    assert shown["why"].endswith("were in a split-brain") or "; alpha goes on" in shown["why"]
