"""Clients that come and go are told in sums, and every one of them is counted."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from repl.node.client_tally import INTERVAL_S, NAMES_MAX, ClientTally


class Told:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.tally = ClientTally(self._tell)

    def _tell(self, text: str, fields: dict[str, object]) -> None:
        self.texts.append(text)
        self.events.append(fields)


def test_the_first_client_is_told_at_once_and_the_next_ones_together() -> None:
    told = Told()
    told.tally.attached()
    told.tally.look(["qemu"], 10.0)
    assert told.texts == ["clients: 1 attached; 1 there now: qemu"]
    told.tally.attached()
    told.tally.attached()
    told.tally.look(["fio", "qemu"], 10.1)
    assert len(told.events) == 1
    told.tally.look(["fio"], 10.0 + INTERVAL_S)
    assert told.texts[1] == "clients: 2 attached and 2 detached; 1 there now: fio"
    told.tally.look(["fio"], 99.0)
    assert len(told.events) == 2, "nothing changed"


def test_many_names_are_cut_short() -> None:
    told = Told()
    names = [f"client{number}" for number in range(20)]
    for _ in names:
        told.tally.attached()
    told.tally.look(names, 0.0)
    assert told.events[0]["clients"] == 20
    assert told.events[0]["names"] == names[:NAMES_MAX]
    assert told.texts[0].endswith(", …")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0, 10)), max_size=40))
def test_the_sums_account_for_every_client(steps: list[tuple[int, int, float]]) -> None:
    told, present, now_s = Told(), 0, 0.0
    for came, went, passed_s in steps:
        for _ in range(came):
            told.tally.attached()
        present = max(0, present + came - went)
        now_s += passed_s
        told.tally.look(["c"] * present, now_s)
    told.tally.look(["c"] * present, now_s + 2 * INTERVAL_S)
    attached = sum(event["attached"] for event in told.events)
    detached = sum(event["detached"] for event in told.events)
    assert attached - detached == present
    assert attached == told.tally.attached_total
    assert len(told.events) <= now_s / INTERVAL_S + 3
