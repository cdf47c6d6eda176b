"""An engine with a real store, primary and without its peer, and NBD clients on socket pairs."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable
from pathlib import Path

from nbdserver.connection import Connection
from nbdserver.export import ExportInfo
from nbdserver.limits import Limits
from nbdserver.terms import ReplyStyle, Terms
from repl.core.promotion import PromoteRequest
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.node.block_status import contexts_of
from repl.node.engine import Engine
from repl.store.open import adopt_store, open_store
from tests.nbdserver.wire import LoopClient, eventually

SIZE_BYTES = 16 << 20
CONTEXTS = contexts_of(["beta"])
STRUCTURED = Terms(ReplyStyle.STRUCTURED, CONTEXTS)


class ServedEngine:
    """Made by `primary`."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        numbers = itertools.count(1)
        arguments = (str(folder), "r0", SIZE_BYTES, str(folder / "r0.img"), ("beta",))
        open_store(*arguments, lambda: next(numbers)).close()
        self.store = adopt_store(*arguments, lambda: next(numbers), discard=False)
        volume = Volume(
            "r0",
            "alpha",
            self.store.facts,
            self.store.maps,
            boot_id="test",
            random_id=lambda: next(numbers),
            now_s=time.monotonic(),
            wall_clock_s=int(time.time()),
        )
        self.engine = Engine(
            self.loop,
            volume,
            self.store,
            on_note=lambda _note: None,
            on_change=lambda: None,
            on_lost=lambda _name, _reason: None,
            on_fatal=lambda reason: None,
            limits=Limits(leave_s=20),
        )
        self.engine.start()

    @classmethod
    async def primary(cls, folder: Path) -> ServedEngine:
        served = cls(folder)
        engine = served.engine
        assert (await served._asked(engine.adopt)).ok
        verdict = await served._asked(lambda answer: engine.promote(PromoteRequest(), answer))
        assert verdict.ok, verdict
        return served

    async def _asked(self, ask: Callable[[Callable[[Verdict], None]], None]) -> Verdict:
        answered: asyncio.Future[Verdict] = self.loop.create_future()
        ask(answered.set_result)
        return await answered

    def client(self, terms: Terms = STRUCTURED) -> LoopClient:
        ours, theirs = socket.socketpair()
        export = ExportInfo("r0", SIZE_BYTES, can_fast_zero=True, contexts=CONTEXTS)
        self.connection = Connection(self.loop, ours, export, self.engine, terms=terms)
        self.engine.add_client(self.connection)
        return LoopClient(theirs)

    async def close(self) -> None:
        await eventually(lambda: self.engine.volume.writes.drained, "nothing is in flight")
        self.engine.close()
        self.store.close()
