"""The engine lets go of everything at any moment, and no late completion wakes the core again."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

from repl.core.volume import Volume
from repl.node.engine import Engine
from repl.store.open import Store, open_store

SIZE = 1 << 20


def make_engine(loop: asyncio.AbstractEventLoop, store: Store, fatal: list[str]) -> Engine:
    numbers = itertools.count(1)
    volume = Volume(
        "r0",
        "alpha",
        store.facts,
        store.maps,
        boot_id="test",
        random_id=lambda: next(numbers),
        now_s=time.monotonic(),
        wall_clock_s=int(time.time()),
    )
    return Engine(
        loop,
        volume,
        store,
        on_note=lambda _note: None,
        on_change=lambda: None,
        on_lost=lambda _name, _reason: None,
        on_fatal=fatal.append,
    )


def test_closing_with_a_commit_under_way_starts_nothing_new(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    numbers = itertools.count(100)
    store = open_store(
        str(tmp_path), "r0", SIZE, str(tmp_path / "r0.img"), (), lambda: next(numbers)
    )
    fatal: list[str] = []
    engine = make_engine(loop, store, fatal)
    # The first commit is in a thread now; its end would lead to the first generation's sync.
    engine.start()
    assert not engine.volume.commits.idle
    engine.close()
    store.close()
    loop.close()
    assert fatal == []
    assert engine.volume.facts.fresh, "nothing was begun after the end"
