"""Orders to a volume's core: asked again while a refusal passes, worded, never for a last copy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from repl.core.timeouts import Timeouts
from repl.core.verdict import Verdict, granted, refused
from repl.core.volume import Volume
from repl.errors import Refused
from repl.node import orders
from repl.node.engine import Engine
from repl.node.orders import ORDERS, may_be_last_copy
from tests.core.every_phase import STAGES, at
from tests.core.split_pairs import resolve, split, until

BUSY = refused("VOLUME_BUSY", "another change is in progress")


class CoreWithAnswers:
    """A core that gives one verdict after the other, the last one for ever."""

    name, node, is_primary = "r0", "alpha", True
    #: No request waits for a permit.
    question = None
    timeouts = Timeouts(peer_timeout_s=0.2)

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts
        self.asked: list[Any] = []

    @property
    def alone(self) -> CoreWithAnswers:
        """The part that gives leave to go on alone."""
        return self

    def give(self, number: int, by: str) -> None:
        self.asked.append(by)

    def resolve(self, number: int, keep: str) -> None:
        self.asked.append(keep)


class EngineWithAnswers:
    """As much of an engine as orders use."""

    def __init__(self, *verdicts: Verdict, clients: tuple[str, ...] = ()) -> None:
        self.volume = CoreWithAnswers(list(verdicts))
        self.client_names = list(clients)
        self.demotions_ordered = 0

    def _next(self) -> Verdict:
        verdicts = self.volume.verdicts
        return verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]

    def ask(self, ask: Callable[[int], None], answer: Callable[[Verdict], None]) -> None:
        ask(1)
        answer(self._next())

    def promote(self, request: object, answer: Callable[[Verdict], None]) -> None:
        self.volume.asked.append(request)
        answer(self._next())

    def demote(self, drop_clients: bool, answer: Callable[[Verdict], None]) -> None:
        self.volume.asked.append(drop_clients)
        answer(self._next())


def carried_out(verb: str, engine: EngineWithAnswers, **args: Any) -> Verdict:
    async def order() -> Verdict:
        return await ORDERS[verb](cast(Engine, engine), args)

    return asyncio.run(order())


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TRANSIENT_STEP_S", 0.001)
    monkeypatch.setattr(orders, "HANDSHAKE_MARGIN_S", 0.01)


@pytest.mark.parametrize("verb", ["promote", "splitbrain-resolve"])
def test_a_refusal_that_passes_is_asked_again(verb: str) -> None:
    engine = EngineWithAnswers(BUSY, BUSY, granted("done"))
    assert carried_out(verb, engine, keep="alpha").reason == "done"
    assert len(engine.volume.asked) == 3


def test_a_promotion_outlasts_a_handshake_that_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that hangs accepts connections, and `--peer-dead` has to wait for their end."""
    monkeypatch.setattr(orders, "TRANSIENT_WAIT_S", 0.0)
    greeting = refused("PROMOTE_HANDSHAKE", "the handshake with beta goes on")
    engine = EngineWithAnswers(*[greeting] * 20, granted("done"))
    assert carried_out("promote", engine, peer_dead="beta").reason == "done"


def test_a_promotion_that_waits_is_given_up_when_a_demotion_is_ordered() -> None:
    """`replctl mount --promote` that was interrupted orders one, and ends."""
    engine = EngineWithAnswers(BUSY)

    async def interrupted() -> None:
        waiting = asyncio.create_task(orders.promote(cast(Engine, engine), {}))
        while not engine.volume.asked:
            await asyncio.sleep(0)
        engine.volume.verdicts = [granted("it was not primary")]
        assert (await orders.demote(cast(Engine, engine), {})).ok
        engine.volume.verdicts = [granted("promoted")]
        with pytest.raises(Refused) as caught:
            await waiting
        assert caught.value.code == "VOLUME_BUSY"

    asyncio.run(interrupted())


@pytest.mark.parametrize("verb", ORDERS)
def test_a_refusal_that_stays_is_given_out_with_its_code(verb: str) -> None:
    engine = EngineWithAnswers(refused("SPLIT_BRAIN", "both were written", "look at it"))
    with pytest.raises(Refused) as caught:
        carried_out(verb, engine, keep="alpha")
    error = caught.value
    assert (error.code, error.why, error.next_step) == (
        "SPLIT_BRAIN",
        "both were written",
        "look at it",
    )
    assert "r0" in error.what


def test_a_refusal_that_never_passes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TRANSIENT_WAIT_S", 0.02)
    with pytest.raises(Refused) as caught:
        carried_out("promote", EngineWithAnswers(BUSY))
    assert "another change" in caught.value.why and caught.value.next_step
    assert "another change" not in caught.value.what, "it is said once"


def test_a_demotion_names_the_clients_that_bar_it() -> None:
    engine = EngineWithAnswers(granted("done"), clients=("one", "two"))
    with pytest.raises(Refused) as caught:
        carried_out("demote", engine, drop_clients=False)
    assert caught.value.code == "DEMOTE_CLIENTS" and "one, two" in caught.value.why
    assert carried_out("demote", engine, drop_clients=True).ok


def volume_of(stage: str) -> Volume:
    return at(stage).volume


@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_is_the_last_one_unless_another_is_known_to_be_complete(stage: str) -> None:
    elsewhere = {
        "refused",
        "split-brain",
        "target",
        "settle-target",
        "first-copy-target",
        "established-primary",
        "established-secondary",
    }
    # A copy that is fresh or half copied is nobody's last one.
    worthless = {"idle", "target-starting", "target", "first-copy-target"}
    assert may_be_last_copy(volume_of(stage)) == (stage not in elsewhere | worthless)


def test_a_copy_that_was_chosen_to_be_kept_is_never_discarded() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    assert not may_be_last_copy(pair.alpha.volume)
    until(pair, "DISCARD")
    assert may_be_last_copy(pair.alpha.volume)
    assert not may_be_last_copy(pair.beta.volume)
