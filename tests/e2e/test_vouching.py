"""An operator's word: what is refused without it, what it leaves behind, and when it was wrong."""

from __future__ import annotations

import json

import pytest

from tests.daemon import Json, Node
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair

LOAD = range(2048)


def newest_generation(node: Node) -> Json:
    """The first entry of the lineage as `metadata dump` shows it."""
    dump = json.loads(node.ctl_ok("--json", "metadata", "dump", "r0"))
    entry = dump["metadata"]["facts"]["lineage"][0]
    assert isinstance(entry, dict)
    return entry


def assert_refused(node: Node, code: str, hint: str, *options: str) -> None:
    refused = node.ctl("promote", "r0", *options)
    assert refused.returncode == 5, refused
    assert f"[{code}]" in refused.stderr and hint in refused.stderr, refused.stderr
    assert node.volume()["role"] == "secondary"


def assert_recorded(node: Node, origin: str, words: str) -> None:
    """The leave to promote is in the lineage, and people see it."""
    entry = newest_generation(node)
    assert entry["origin"] == origin and words in entry["permit"], entry
    assert words in node.ctl_ok("metadata", "dump", "r0")
    generation = node.volume()["generation"]
    assert (generation["origin"], generation["permit"]) == (origin, entry["permit"])
    assert words in node.ctl_ok("status", "r0")


def test_cut_off_secondary_needs_a_word_and_the_lineage_keeps_it(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), region=LOAD).start()
    client.wait_acknowledged(100)
    pair.alpha.kill()
    client.join()
    pair.beta.wait_alone()
    assert_refused(pair.beta, "PROMOTE_NO_EVIDENCE", "replctl promote r0 --peer-dead alpha")
    vouched = pair.beta.ctl("promote", "r0", "--peer-dead", "alpha")
    assert vouched.returncode == 0
    assert "You vouch: alpha is stopped and acknowledged no write" in vouched.stderr
    assert_recorded(pair.beta, "peer-dead", "an operator vouched that alpha is stopped")
    judge_over_nbd(ledger, pair.beta.uri())
    pair.alpha.start()
    assert_promises_kept(pair, pair.beta, ledger)


def test_copy_left_behind_is_served_only_for_the_loss_of_data_by_name(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), region=LOAD) as client:
        client.wait_acknowledged(100)
        # beta leaves while alpha is primary: it knows that it is outdated.
        assert pair.beta.stop() == 0
        client.wait_acknowledged(100)
    pair.alpha.kill()
    pair.beta.start()
    for options in ((), ("--peer-dead", "alpha")):
        assert_refused(pair.beta, "PROMOTE_OUTDATED", "start the peer", *options)
    unnamed = pair.beta.ctl("promote", "r0", "--lose-data")
    assert unnamed.returncode == 7, unnamed
    pair.beta.promote("r0", "--lose-data", "r0")
    assert_recorded(pair.beta, "data-lost", "accepted the loss of data by name")

    # What was given up is not lost yet: alpha keeps it, and a person chooses.
    theirs = Ledger(ledger.block_count, seed=1)
    with LedgerClient(theirs, pair.beta.uri(), region=range(4096, 4200)) as client:
        client.wait_acknowledged(50)
    pair.alpha.start()
    for node in pair.nodes:
        shown = node.wait_volume(
            lambda v: v["peers"][0]["connection_state"] == "split-brain", "says split-brain"
        )
        assert "replctl splitbrain show r0" in shown["next"]
    ledger.judge_file(pair.alpha.backing())
    pair.beta.ctl_ok("demote", "r0", "--drop-clients")
    pair.beta.ctl_ok("volume", "adopt", "r0", "--discard", "--confirm", "r0")
    if pair.alpha.volume()["role"] != "primary":
        pair.alpha.promote()
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_wrong_word_is_found_out_at_the_next_contact_and_both_copies_are_kept(
    ledger: Ledger,
) -> None:
    with Pair.make(counted=True) as pair:
        assert pair.wire is not None
        pair.start_in_sync(primary=pair.alpha)
        with LedgerClient(ledger, pair.alpha.uri(), region=LOAD) as client:
            client.wait_acknowledged(100)
            pair.wire.part()
            client.wait_acknowledged(100)
            pair.beta.wait_alone()
            # alpha is not dead at all.
            pair.beta.promote("r0", "--peer-dead", "alpha")
            theirs = Ledger(ledger.block_count, seed=1)
            with LedgerClient(theirs, pair.beta.uri(), region=range(4096, 4200)) as other:
                other.wait_acknowledged(50)
                pair.wire.heal()
                for node in pair.nodes:
                    node.wait_volume(
                        lambda v: v["peers"][0]["connection_state"] == "split-brain",
                        "says split-brain",
                    )
        for one in (client, other):
            assert_no_error_reached(one)
        pair.beta.ctl_ok("demote", "r0", "--drop-clients")
        pair.beta.ctl_ok("volume", "adopt", "r0", "--discard", "--confirm", "r0")
        assert_promises_kept(pair, pair.alpha, ledger)
