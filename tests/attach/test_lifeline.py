"""When a device waits and when it is taken away, and what its volume's history says of that."""

from __future__ import annotations

import pytest

from repl.attach.history import Generation, Lineage, taken_over
from repl.attach.lifeline import Lifeline

ME, OTHER = 11, 22


def test_gone_daemon_is_dead_only_after_its_time() -> None:
    line = Lifeline(5.0)
    line.up()
    line.gone(100.0, "nothing answers")
    assert (line.connected, line.reason) == (False, "nothing answers")
    line.gone(104.9, "nothing answers")
    assert not line.is_dead(104.9)
    assert line.is_dead(105.0)


def test_daemon_that_is_back_ends_the_count() -> None:
    line = Lifeline(5.0)
    line.gone(100.0, "nothing answers")
    line.waits("r0 is about to resume")
    assert not line.is_dead(200.0)
    line.gone(200.0, "nothing answers")
    assert not line.is_dead(204.0)
    line.up()
    assert line.connected and not line.reason and not line.is_dead(1000.0)


def test_waiting_has_no_end_of_its_own() -> None:
    line = Lifeline(0.0)
    line.waits("r0 is secondary here")
    assert not line.is_dead(1e9)


def test_volume_served_elsewhere_is_dead_at_once_and_for_good() -> None:
    line = Lifeline(5.0)
    line.served_elsewhere("another node had it")
    assert line.is_dead(0.0)
    line.up()
    assert line.is_dead(0.0)


@pytest.mark.parametrize(
    ("entries", "may_go_on"),
    [
        ([(5, ME)], True),
        ([(9, ME), (8, ME), (5, ME), (2, OTHER)], True),
        ([(9, OTHER), (5, ME)], False),
        ([(9, ME), (8, OTHER), (5, ME)], False),
        ([(9, ME), (8, ME)], False),
        ([], False),
    ],
)
def test_device_goes_on_only_over_its_own_nodes_generations(
    entries: list[tuple[int, int]], may_go_on: bool
) -> None:
    lineage = Lineage(ME, [Generation(*entry) for entry in entries])
    assert (taken_over(lineage, since=5) == "") == may_go_on


def test_device_does_not_go_on_over_lost_data() -> None:
    lost = Generation(6, ME, data_lost=True)
    assert "--lose-data" in taken_over(Lineage(ME, [lost, Generation(5, ME)]), since=5)
    assert taken_over(Lineage(ME, [lost, Generation(5, ME)]), since=6) == ""


def test_lineage_names_its_current_generation() -> None:
    assert Lineage(ME, [Generation(7, ME), Generation(3, ME)]).current == 7
    assert Lineage(ME, []).current == 0
