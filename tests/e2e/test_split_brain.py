"""Two real nodes written apart: both histories are shown, one is kept, and only it, whatever dies.

Each side keeps a book of what its clients were promised. The kept side's book must hold to the last
block in both copies afterwards; of the other one's, what was promised before the fork.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from tests.daemon import ROOT, Json, Node, wait_for
from tests.e2e.judging import WIRE_OVERHEAD, assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.libnbd import load
from tests.pair import Pair
from tests.wire import CountingProxy

#: What alpha writes alone, and what beta does, in blocks: some of it is the same.
ALPHA_REGION = range(900)
BETA_REGION = range(600, 1500)
#: Greetings, pings, maps and status between two nodes while a test waits for them.
CHATTER_BYTES = 256 << 10
#: What the digest of one block may take on the wire.
DIGEST_BYTES_MAX = 32

Books = dict[str, Ledger]


@pytest.fixture
def parted() -> Iterator[tuple[Pair, CountingProxy]]:
    """A pair whose connection leads through a proxy that can part it."""
    with Pair.make(counted=True) as pair:
        assert pair.wire is not None
        yield pair, pair.wire


def write(node: Node, ledger: Ledger, region: range, writes: int = 60) -> None:
    with LedgerClient(ledger, node.uri(), region=region, flush_every=20) as client:
        client.wait_acknowledged(writes)
    assert_no_error_reached(client)


def is_split(volume: Json) -> bool:
    return str(volume["peers"][0]["connection_state"]) == "split-brain"


def wait_split(pair: Pair) -> None:
    for node in pair.nodes:
        node.wait_volume(is_split, "knows of the split-brain")


def write_apart(pair: Pair, wire: CountingProxy, ledger: Ledger) -> Books:
    """alpha is primary and goes on alone; beta is promoted by a wrong word; both are written."""
    wire.part()
    books = {"alpha": ledger, "beta": ledger.twin()}
    write(pair.alpha, books["alpha"], ALPHA_REGION)
    pair.beta.wait_volume(
        lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
    )
    pair.beta.promote("r0", "--peer-dead", "alpha")
    pair.beta.wait_primary()
    write(pair.beta, books["beta"], BETA_REGION)
    wire.heal()
    wait_split(pair)
    return books


def shown(node: Node) -> Json:
    found: Json = json.loads(node.ctl_ok("--json", "splitbrain", "show", "r0"))
    return found


def knows_its_clients(node: Node, counts: list[int]) -> bool:
    return [side["clients"] for side in shown(node)["sides"]] == counts


def resolve(node: Node, keep: str) -> str:
    return node.ctl_ok("splitbrain", "resolve", "r0", "--keep", keep, "--confirm", "r0")


def demote(node: Node) -> None:
    node.ctl_ok("demote", "r0", "--drop-clients")


def named(pair: Pair, name: str) -> Node:
    return pair.alpha if name == "alpha" else pair.beta


def assert_kept(pair: Pair, keep: str, books: Books) -> None:
    """Both copies hold exactly what the kept side promised."""
    kept = named(pair, keep)
    pair.wait_in_sync()
    if kept.volume()["role"] != "primary":
        kept.promote()
    kept.wait_primary()
    assert_promises_kept(pair, kept, books[keep])


def test_both_promoted_while_cut_off_and_one_is_kept(
    parted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = parted
    pair.start_in_sync(primary=pair.alpha)
    write(pair.alpha, ledger, range(2000))
    books = write_apart(pair, wire, ledger)

    # Both nodes show the same two histories, and say that it is critical.
    here, there = shown(pair.alpha), shown(pair.beta)
    for key in ("fork", "sides", "differing_bytes_at_most"):
        assert here[key] == there[key]
    assert [side["role"] for side in here["sides"]] == ["primary", "primary"]
    origins = [side["generations"][-1]["origin"] for side in here["sides"]]
    assert origins == ["alone", "peer-dead"]
    differing = int(here["differing_bytes_at_most"])
    assert here["differing_known_from_maps"] and 0 < differing < here["size_bytes"] // 4
    for node in pair.nodes:
        assert node.ctl("status", "--check").returncode == 11
        status = node.ctl_ok("status")
        assert "Both are primary" in status and "replctl splitbrain show r0" in status
        text = node.ctl_ok("splitbrain", "show", "r0")
        assert "promoted with --peer-dead" in text and "--keep beta" in text

    # Who uses which side decides what is given up: a client of alpha is named on both nodes.
    client = load().NBD()
    client.connect_uri(pair.alpha.uri())
    for node in pair.nodes:
        wait_for(partial(knows_its_clients, node, [1, 0]), what=f"{node.name} knows the clients")
        text = node.ctl_ok("splitbrain", "show", "r0")
        assert f"1 client (unix pid {os.getpid()})" in text
    client.shutdown()

    # What is not meant, not known or in use changes nothing.
    order = ("splitbrain", "resolve", "r0", "--keep")
    assert pair.beta.ctl(*order, "alpha").returncode == 7
    assert pair.beta.ctl(*order, "gamma", "--confirm", "r0").returncode == 4
    for node in pair.nodes:
        refused = node.ctl(*order, "alpha", "--confirm", "r0")
        assert refused.returncode == 5 and "RESOLVE_PRIMARY" in refused.stderr
        assert "on beta: replctl demote r0 --drop-clients" in refused.stderr
    assert is_split(pair.alpha.volume())

    demote(pair.beta)
    before = wire.sent_bytes
    resolve(pair.beta, "alpha")
    assert_kept(pair, "alpha", books)
    sent = wire.sent_bytes - before
    blocks = here["size_bytes"] // ledger.block_bytes
    assert sent < differing * WIRE_OVERHEAD + blocks * DIGEST_BYTES_MAX + CHATTER_BYTES
    again = pair.alpha.ctl(*order, "beta", "--confirm", "r0")
    assert again.returncode == 5 and "NOT_SPLIT" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "ordered_on"), list(itertools.product(("alpha", "beta"), ("alpha", "beta")))
)
def test_either_side_is_kept_by_an_order_on_either_node(
    parted: tuple[Pair, CountingProxy], ledger: Ledger, keep: str, ordered_on: str
) -> None:
    pair, wire = parted
    pair.start_in_sync(primary=pair.alpha)
    books = write_apart(pair, wire, ledger)
    demote(pair.other(named(pair, keep)))
    # The kept side goes on serving while the other one is brought up to it.
    with LedgerClient(
        books[keep], named(pair, keep).uri(), region=range(2000, 2500), run_blocks=4
    ) as client:
        client.wait_acknowledged(20)
        resolve(named(pair, ordered_on), keep)
        client.wait_acknowledged(50)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_kept(pair, keep, books)


@pytest.mark.slow
def test_split_brains_are_resolved_again_and_again(
    parted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = parted
    pair.start_in_sync(primary=pair.alpha)
    for keep in ("beta", "alpha", "beta"):
        books = write_apart(pair, wire, ledger)
        demote(pair.other(named(pair, keep)))
        resolve(pair.alpha, keep)
        assert_kept(pair, keep, books)
        ledger = books[keep]
        if keep == "beta":
            demote(pair.beta)
            pair.alpha.promote()
            pair.alpha.wait_primary()


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["alpha", "beta"])
def test_a_forced_stale_copy_is_kept_or_given_up_whole(
    pair: Pair, ledger: Ledger, keep: str
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    write(pair.alpha, ledger, range(500))
    pair.beta.kill()
    # What beta holds when it is forced: the past without what alpha goes on to write alone.
    books = {"alpha": ledger, "beta": ledger.twin()}
    write(pair.alpha, books["alpha"], ALPHA_REGION)
    pair.alpha.kill()
    pair.beta.start()
    pair.beta.promote("r0", "--lose-data", "r0")
    pair.beta.wait_primary()
    write(pair.beta, books["beta"], BETA_REGION)
    pair.alpha.start()
    wait_split(pair)
    found = shown(pair.beta)
    assert not found["differing_known_from_maps"]
    assert found["differing_bytes_at_most"] == found["size_bytes"]
    lost = pair.other(named(pair, keep))
    if lost.volume()["role"] == "primary":
        demote(lost)
    resolve(lost, keep)
    assert_kept(pair, keep, books)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["alpha", "beta"])
@pytest.mark.parametrize("victims", [("alpha",), ("beta",), ("alpha", "beta")])
def test_daemons_killed_in_the_middle_of_resolving_keep_the_chosen_copy(
    parted: tuple[Pair, CountingProxy], ledger: Ledger, keep: str, victims: tuple[str, ...]
) -> None:
    pair, wire = parted
    pair.start_in_sync(primary=pair.alpha)
    books = write_apart(pair, wire, ledger)
    for node in pair.nodes:
        demote(node)
    dice = random.Random(f"{keep} {victims}")
    for turn in range(4):
        order = begin_resolve(pair.nodes[turn % 2], keep)
        # From before the daemon hears of it to well within the copy.
        with contextlib.suppress(subprocess.TimeoutExpired):
            order.wait(dice.choice((0.05, 0.3, 0.6, 1.0)))
        for name in victims:
            named(pair, name).kill()
        order.wait(60)
        for name in victims:
            named(pair, name).start()
    resolved(pair, keep)
    assert_kept(pair, keep, books)


def begin_resolve(node: Node, keep: str) -> subprocess.Popen[bytes]:
    """Give the order, and do not wait for it."""
    command = [sys.executable, "-m", "repl.cli.main", "--socket", str(node.control)]
    command += ["splitbrain", "resolve", "r0", "--keep", keep, "--confirm", "r0"]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )  # fmt: skip


def resolved(pair: Pair, keep: str) -> None:
    """Order it again for as long as the two are in a split-brain; then they get in sync."""

    def over() -> bool:
        states = {node.volume()["peers"][0]["connection_state"] for node in pair.nodes}
        if states == {"split-brain"}:
            pair.alpha.ctl("splitbrain", "resolve", "r0", "--keep", keep, "--confirm", "r0")
        return "connected" in states and len(states) == 1

    wait_for(over, what="the split-brain is over")
