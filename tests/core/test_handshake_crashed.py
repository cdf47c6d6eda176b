"""A process that crashed may have hidden a failed sync: the other copy is the better source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from repl.core import hello as hellos
from repl.core.handshake import MIRROR, Action, decide
from repl.core.hello import Hello
from repl.core.wire import PeerError
from tests.core.pair_of_cores import data, established_pair
from tests.core.test_handshake import HIGH, LOW, ROOT_ID, generation, hello

CRASHED = (None, False, True)
LINEAGE = (generation(1, ROOT_ID, primary=LOW, answered=True),)
#: LOW was the last primary: without any crash, it is the source.
PLAIN_LOW, PLAIN_HIGH = hello(LOW, HIGH, LINEAGE), hello(HIGH, LOW, LINEAGE)


def meetings() -> Iterator[tuple[Hello, Hello]]:
    flags = (False, True)
    for primary, lost, crashed in product(flags, flags, CRASHED):
        low = replace(PLAIN_LOW, is_primary=primary, cache_lost=lost, crashed=crashed)
        for lost_too, crashed_too in product(flags, CRASHED):
            yield low, replace(PLAIN_HIGH, cache_lost=lost_too, crashed=crashed_too)


def test_both_sides_agree_on_the_source_whatever_either_knows_of_crashes() -> None:
    for low, high in meetings():
        assert MIRROR[decide(low, high).action] is decide(high, low).action, (low, high)


def test_a_settle_goes_from_the_side_whose_process_did_not_crash() -> None:
    """A failed sync may have taken writes from the last primary before it could store the mark."""
    low, high = PLAIN_LOW, PLAIN_HIGH
    assert decide(replace(low, crashed=True), high).action is Action.SETTLE_TARGET
    assert decide(low, replace(high, crashed=True)).action is Action.SETTLE_SOURCE
    both = decide(replace(low, crashed=True), replace(high, crashed=True))
    assert both.action is Action.SETTLE_SOURCE
    lost_cache = replace(high, cache_lost=True, crashed=True)
    assert decide(replace(low, crashed=True), lost_cache).action is Action.SETTLE_SOURCE


def test_a_side_that_does_not_say_whether_it_crashed_decides_nothing_by_it() -> None:
    """An older version looks at neither side's word, and the two must be mirror images."""
    high = replace(PLAIN_HIGH, crashed=None)
    assert decide(replace(PLAIN_LOW, crashed=True), high).action is Action.SETTLE_SOURCE
    body = hellos.to_json(PLAIN_LOW)
    del body["crashed"]
    assert hellos.from_json(body).crashed is None
    with pytest.raises(PeerError, match="crashed"):
        hellos.from_json(body | {"crashed": "no"})


def test_a_settle_ends_the_doubt_that_a_crash_left() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.restart(pair.beta)
    pair.run()
    assert pair.beta.metadata.facts.crashed
    pair.connect()
    pair.run()
    assert not pair.beta.metadata.facts.crashed
