"""Whatever step of a real engine the power is cut at, nothing promised is lost (design §5, §6).

Every sync of the engine and of the store that the run needed is taken out of the recording once:
the judge must notice each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.node.power_cuts import Asked, Judge, Recording, Replied, Written
from tests.node.recorded_pair import NODES, RecordedPair, Tape
from tests.sim.violation import Violation

#: The recorder stands between an engine and its connections as a class of its own.
pytestmark = pytest.mark.interpreted


async def run_pair(pair: RecordedPair) -> None:
    """First contact, writes cold and hot, flushes, a checkpoint; alone; back and joined again."""
    pair.start()
    pair.connect()
    await pair.established()
    await pair.promote("alpha")
    await pair.write(0, 1, 2, 700, 1500)
    await pair.write(0, 1, 3)
    await pair.flush()
    await pair.write(5, 1900, fua=True)
    await pair.write(1, 2)
    for name in NODES:
        await pair.at_rest(name)
    await pair.write(2, 800)
    await pair.flush()
    pair.cut()
    await pair.write(1, 4, 900)
    await pair.flush()
    await pair.at_rest("alpha")
    await pair.write(4, 1200, fua=True)
    pair.connect()
    await pair.established()
    await pair.write(4, 6)
    await pair.flush()
    for name in NODES:
        await pair.at_rest(name)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    loop = asyncio.new_event_loop()
    tape = Tape()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        pair = RecordedPair(tmp_path_factory.mktemp("recorded"), loop, tape)
        stack.callback(pair.close)
        tape.install(monkeypatch)
        loop.run_until_complete(run_pair(pair))
        yield replace(pair.recording, events=list(tape.events))


def test_a_power_cut_at_any_step_loses_nothing_promised(recording: Recording) -> None:
    assert sum(isinstance(event, Replied) for event in recording.events) > 20
    Judge(recording).judge()


def test_no_sync_can_be_left_out_unnoticed(recording: Recording) -> None:
    sites = recording.sync_sites()
    # Both nodes sync their copy, and their metadata at more than one place.
    assert {node for node, _ in sites} == set(NODES)
    assert len({site for _, site in sites}) >= 4, sites
    unnoticed = []
    for node, site in sorted(sites):
        try:
            Judge(recording.without_sync(node, site)).judge()
        except Violation:
            continue
        unnoticed.append((node, site))
    assert unnoticed == []


@pytest.mark.parametrize("node", NODES)
def test_a_reply_before_a_member_has_the_write_is_noticed(recording: Recording, node: str) -> None:
    events = list(recording.events)
    asked = next(event for event in events if isinstance(event, Asked) and event.version)
    events.remove(Replied(asked.cookie))
    written = next(
        event
        for event in events
        if isinstance(event, Written)
        and event.node == node
        and (asked.block, asked.version) in event.blocks
    )
    events.insert(events.index(written), Replied(asked.cookie))
    with pytest.raises(Violation, match=f"{node} does not have it|does not say so"):
        Judge(replace(recording, events=events)).judge()
