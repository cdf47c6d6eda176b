"""A disk in another's place, new, cloned or from a backup, is filled or refused, never served.

Every refusal is seen on both nodes, says why, and leaves the primary's clients alone.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemon import Json, Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

LOAD = range(2048)


def copy_exactly(source: Path, target: Path) -> None:
    """Copy a file or folder with holes and extended attributes, as a clone of a disk would."""
    if target.is_dir():
        shutil.rmtree(target)
    command = ["cp", "-a", "--sparse=always", "--no-target-directory", str(source), str(target)]
    subprocess.run(command, check=True)


def start_over(node: Node) -> None:
    """Copy nothing, keep nothing: the node begins with an empty disk and no memory."""
    shutil.rmtree(node.state_dir)
    node.backing().unlink()
    node.start()


def wait_refused(node: Node, rule: str) -> Json:
    """Wait until the node shows the connection as refused by this rule; return its status."""

    def refused(volume: Json) -> bool:
        (peer,) = volume["peers"]
        handshake = peer.get("last_handshake")
        return bool(
            peer["connection_state"] == "refused" and handshake and handshake["rule"] == rule
        )

    return node.wait_volume(refused, f"is refused: {rule}")


def discard(node: Node) -> None:
    """What the refusals say to do on the copy that may be overwritten.

    The peer closes a refused connection when its set changes; until the two have met again, this is
    refused too, with the word to wait.
    """

    refusals: list[str] = []

    def done() -> bool:
        result = node.ctl("volume", "adopt", "r0", "--discard", "--confirm", "r0")
        refusals.append(result.stderr)
        return result.returncode == 0

    wait_for(done, what="the copy is discarded")
    assert all("[ADOPT_LAST_COPY]" in refusal for refusal in refusals[:-1]), refusals


@pytest.mark.slow
def test_empty_node_under_a_known_name_is_filled_under_load(
    small_pair: Pair, small_ledger: Ledger
) -> None:
    pair = small_pair
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(small_ledger, pair.alpha.uri(), region=LOAD) as client:
        client.wait_acknowledged(200)
        pair.beta.kill()
        client.wait_acknowledged(50)
        start_over(pair.beta)
        pair.wait_in_sync()
        client.wait_acknowledged(50)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, small_ledger)


def test_clone_of_the_peer_is_refused_until_it_is_discarded(
    small_pair: Pair, small_ledger: Ledger
) -> None:
    pair = small_pair
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(small_ledger, pair.alpha.uri(), region=LOAD) as client:
        client.wait_acknowledged(100)
    assert [node.stop() for node in (pair.beta, pair.alpha)] == [0, 0]
    # The whole machine was copied: what was beta shows alpha's identity.
    copy_exactly(pair.alpha.state_dir, pair.beta.state_dir)
    copy_exactly(pair.alpha.backing(), pair.beta.backing())
    pair.start()
    for node in pair.nodes:
        assert "a copy of the other machine" in wait_refused(node, "cloned-node")["why"]
    pair.alpha.promote()
    with LedgerClient(small_ledger, pair.alpha.uri(), seed=1, region=LOAD) as client:
        client.wait_acknowledged(100)
        discard(pair.beta)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, small_ledger)


@pytest.mark.slow
def test_copied_state_directory_does_not_fit_another_disk(
    small_pair: Pair, small_ledger: Ledger
) -> None:
    pair = small_pair
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(small_ledger, pair.alpha.uri(), region=LOAD) as client:
        client.wait_acknowledged(100)
        assert pair.beta.stop() == 0
        copy_exactly(pair.alpha.state_dir, pair.beta.state_dir)
        pair.beta.start()
        problem = pair.beta.wait_closed()["problem"]
        assert problem["code"] == "BACKING_FOREIGN", problem
        assert problem["why"] and problem["next"]
        discard(pair.beta)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, small_ledger)


@pytest.mark.parametrize(
    "what", ["state directory", pytest.param("whole disk", marks=pytest.mark.slow)]
)
def test_backup_of_an_earlier_contact_is_refused_with_the_reason(
    small_pair: Pair, small_ledger: Ledger, what: str
) -> None:
    pair = small_pair
    backup = pair.folder / "backup"
    backup.mkdir()
    pair.start_in_sync(primary=pair.alpha)
    pair.beta.kill()
    copy_exactly(pair.beta.state_dir, backup / "state")
    copy_exactly(pair.beta.backing(), backup / "image")
    pair.beta.start()
    pair.wait_in_sync()
    with LedgerClient(small_ledger, pair.alpha.uri(), region=LOAD, flush_every=20) as client:
        client.wait_acknowledged(200)
        pair.beta.kill()
        copy_exactly(backup / "state", pair.beta.state_dir)
        if what == "whole disk":
            copy_exactly(backup / "image", pair.beta.backing())
        pair.beta.start()
        for node in pair.nodes:
            why = wait_refused(node, "no-common-contact")["why"]
            assert "backup" in why, why
        refused = pair.beta.ctl("promote", "r0")
        assert refused.returncode == 5, refused.stderr
        client.wait_acknowledged(50)
        discard(pair.beta)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, small_ledger)
