"""Scripted conversations: one command or expectation a line, run on the simulated world.

    start alpha beta            the processes start (`fresh NODE unknown` before: not known zeroes)
    stop NODE | crash NODE      a clean stop | SIGKILL
    power [all|some|none] NODE… the machines lose power, and of the unsynced sectors what is said
    freeze NODE | thaw NODE     SIGSTOP | SIGCONT
    cut | connect               break the link and keep it down | let it be made again
    hold NODE commits|syncs|reads|link      nothing of that kind goes on there until `release NODE`
    fail NODE syncs|writes      the disk refuses to sync | to write
    save NODE | restore NODE    take, and put back, an image of both disks of a stopped node
    NODE write|zero|trim OFFSET LENGTH vN   NODE flush fN       (fua: `write! …`)
    NODE read OFFSET LENGTH rN              answered only with what was promised
    NODE promote [--peer-dead NODE] [--lose-data] [--accept-half-copied]
    NODE demote | NODE adopt | NODE vanish-client | NODE resolve KEPT-NODE
    NODE continue | NODE compare
    ask                         alone = "ask" for processes that start from now on
    lie                         an operator's next vouching is wrong: two primaries are his doing
    run 2s | count              let time pass | count resync bytes from zero again
    expect …                    let time pass, at most 20 s, until it is so
    expect not …                it is not so now

What can be expected: `ack vN`, `granted`, `refused CODE`, `NODE role R`, `NODE disk STATE`,
`NODE phase PHASE`, `NODE members a,b`, `NODE holds OFFSET LENGTH vN|zero`,
`NODE hole OFFSET LENGTH`, `NODE dirty BYTES`, `NODE down`,
`handshake RULE`, `said TEXT`, `equal`, `resync bytes <= N`, `NODE intents N`,
`NODE shows differing BYTES` (in a split-brain).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from repl.core.promotion import PromoteRequest
from repl.core.snapshot import split_brain_snapshot
from repl.core.verdict import Verdict
from tests.sim.client import Client, Load
from tests.sim.disk import DataDisk, Loss, SectorDisk
from tests.sim.geometry import Geometry, applied
from tests.sim.ledger import Op, OpKind, sector_bytes
from tests.sim.node import Node
from tests.sim.world import World

EXPECT_S = 20.0


class ScriptError(AssertionError):
    """A line of a script did not come true."""


class Script:
    """One script and its world."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.world = World(1, swap_ids=False)
        self.world.verbose = True
        self.clients: dict[str, Client] = {}
        self.ops: dict[str, Op] = {}
        self.verdicts: list[Verdict] = []
        self._saved: dict[str, tuple[DataDisk, SectorDisk]] = {}
        self._made: set[str] = set()
        self._said_from = 0
        self._shakes_from = 0

    def run(self) -> None:
        """Run every line; raise `ScriptError` with the line and what happened before it."""
        for number, raw in enumerate(self.path.read_text().splitlines(), 1):
            line = raw.split("#")[0].strip()
            if not line:
                continue
            self.world.say("script", line)
            try:
                self._line(line.split())
            except AssertionError as error:
                trace = "\n".join(self.world.log[-60:])
                raise ScriptError(
                    f"{self.path.name}:{number}: {line}: {error or 'not so'}\n{trace}"
                ) from error

    def _line(self, words: list[str]) -> None:
        if words[0] == "expect":
            self._expect(words[1:])
        elif words[0] in self.world.nodes:
            self._order(self.world.nodes[words[0]], words[1], words[2:])
        else:
            self._event(words[0], words[1:])

    # Events.

    def _event(self, verb: str, words: list[str]) -> None:
        world = self.world
        loss = Loss.ALL
        if verb == "power" and words[0] in [known.value for known in Loss]:
            loss = Loss(words.pop(0))
        nodes = [world.nodes[word] for word in words if word in world.nodes]
        if verb == "run":
            self._run(float(words[0].rstrip("s")))
        elif verb == "lie":
            world.forced = True
        elif verb == "ask":
            world.alone_asks = True
        elif verb == "count":
            world.resync_bytes = 0
        elif verb == "cut":
            world.network.cut = True
            world.network.reset()
            self._run(0.4)
        elif verb == "connect":
            world.network.cut = False
            self._shakes_from = len(world.log)
        else:
            for node in nodes:
                self._node_event(verb, node, words, loss)

    def _run(self, seconds: float) -> None:
        self.world.clock.run_until(self.world.clock.now_s + seconds)

    def _node_event(self, verb: str, node: Node, words: list[str], loss: Loss) -> None:
        world = self.world
        if verb == "fresh":
            node.make_metadata(known_zeroes="unknown" not in words)
            self._made.add(node.name)
        elif verb == "image":
            node.data.write(int(words[1]), sector_bytes(999, int(words[1]) // 512))
            node.data.sync()
        elif verb == "start":
            if node.name not in self._made:
                node.make_metadata(known_zeroes=True)
                self._made.add(node.name)
            self._shakes_from = len(world.log)
            node.start()
        elif verb == "crash":
            node.crash()
            self._run(0.02)
        elif verb == "stop":
            node.stop()
            self._until(lambda: not node.running)
        elif verb == "freeze":
            node.backlog.frozen = True
        elif verb == "thaw":
            node.backlog.thaw()
        elif verb == "power":
            node.lose_power(loss, world.choice)
        elif verb == "fail":
            node.fail_syncs = words[1] == "syncs"
            node.fail_writes = words[1] == "writes"
        else:
            self._hold_or_save(verb, node, words)

    def _hold_or_save(self, verb: str, node: Node, words: list[str]) -> None:
        network = self.world.network
        if verb == "hold":
            if words[1] == "link":
                network.hold(node.name)
            else:
                assert words[1] in ("commits", "syncs", "reads"), words[1]
                node.held.add(words[1])
        elif verb == "release":
            network.release(node.name)
            node.release()
        elif verb == "save":
            assert not node.running
            data, meta = DataDisk(node.data.size_bytes), SectorDisk(node.meta.size_bytes)
            data.image[:], meta.image[:] = node.data.image, node.meta.image
            data.allocated[:] = node.data.allocated
            self._saved[node.name] = (data, meta)
        elif verb == "restore":
            assert not node.running
            node.data, node.meta = self._saved.pop(node.name)
        else:
            raise ScriptError(f"unknown command {verb!r}")

    # Orders.

    def _order(self, node: Node, verb: str, words: list[str]) -> None:
        volume = node.volume
        assert volume is not None, f"{node.name} is not running"
        if verb == "promote":
            request = PromoteRequest(
                peer_dead=node.peer if "--peer-dead" in words else "",
                lose_data="--lose-data" in words,
                accept_half_copied="--accept-half-copied" in words,
            )
            self.verdicts.clear()
            node.promote(request, self.verdicts.append)
        elif verb == "demote":
            self.verdicts.clear()
            node.demote(self.verdicts.append)
        elif verb == "resolve":
            self.verdicts = self.world.lines.resolve(node, self.world.nodes[words[0]])
        elif verb == "adopt":
            self.verdicts.clear()
            node.admin(volume.adopt, self.verdicts.append)
            node.ledger.lose_history(node.data.image)
        elif verb == "continue":
            self.verdicts.clear()
            question = volume.alone.question
            if question is not None:
                self.world.continued.add((node.name, question.generation_id))
            node.admin(lambda n: volume.alone.give(n, "uid 0"), self.verdicts.append)
        elif verb == "compare":
            self.world.compare_all(node)
        elif verb == "vanish-client":
            self.clients.pop(node.name).leave()
        else:
            self._client_order(node, verb, words)

    def _client_order(self, node: Node, verb: str, words: list[str]) -> None:
        fua = verb.endswith("!")
        kind = OpKind(verb.rstrip("!"))
        label = words[-1]
        number = int(label[1:])
        if kind is OpKind.FLUSH:
            op = Op(10_000 + number, kind, 0, 0, False)
        else:
            op = Op(number, kind, _size(words[0]), _size(words[1]), fua)
        client = self.clients.get(node.name)
        if client is None or client.node is None:
            client = self.clients[node.name] = Client(self.world, Load())
            self._until(lambda: node.serving and not node.ghosts)
            client.attach_to(node)
        self.ops[label] = op
        client.submit(op)

    # Expectations.

    def _expect(self, words: list[str]) -> None:
        if words[0] == "not":
            holds = self._condition(words[1:])
            assert not holds(), "it is so"
        else:
            self._until(self._condition(words))

    def _until(self, condition: Callable[[], bool]) -> None:
        clock = self.world.clock
        assert clock.run_until(clock.now_s + EXPECT_S, condition), "it did not come true"

    def _condition(self, words: list[str]) -> Callable[[], bool]:
        world = self.world
        what = words[0]
        if what == "ack":
            return lambda: self.ops[words[1]].acked
        if what == "granted":
            return lambda: bool(self.verdicts) and self.verdicts[0].ok
        if what == "refused":
            return lambda: bool(self.verdicts) and self.verdicts[0].code == words[1]
        if what == "equal":
            return lambda: world.alpha.data.image == world.beta.data.image
        if what == "handshake":
            return lambda: self._said(f": {words[1]}:", self._shakes_from)
        if what == "said":
            return lambda: self._said(" ".join(words[1:]), 0)
        if what == "resync":
            limit = _size(words[3])
            return lambda: world.resync_bytes <= limit
        return self._node_condition(world.nodes[what], words[1], words[2:])

    def _said(self, text: str, start: int) -> bool:
        said = [line for line in self.world.log[start:] if " script " not in line]
        return any(text in line for line in said)

    def _node_condition(self, node: Node, what: str, words: list[str]) -> Callable[[], bool]:
        if what == "down":
            return lambda: not node.running
        if what == "holds":
            return lambda: _holds(node, words)
        if what == "hole":
            start, length = _size(words[0]), _size(words[1])
            return lambda: node.data.hole_end(start) >= start + length
        volume = node.volume
        assert volume is not None, f"{node.name} is not running"
        session = volume.sessions[node.peer]
        conditions: dict[str, Callable[[], bool]] = {
            "role": lambda: volume.role_text == words[0],
            "disk": lambda: volume.disk_state_text == words[0],
            "phase": lambda: session.phase.value == words[0],
            "members": lambda: (
                self.world.names_of(volume.commits.stored.generation.members)
                == set(words[0].split(","))
            ),
            "intents": lambda: volume.maps.intents.count == int(words[0]),
            "shows": lambda: (
                split_brain_snapshot(volume).get("differing_bytes_at_most") == _size(words[1])
            ),
            "dirty": lambda: volume.maps.dirty[node.peer].set_bytes == _size(words[0]),
        }
        return conditions[what]


def _holds(node: Node, words: list[str]) -> bool:
    offset, length = _size(words[0]), _size(words[1])
    version = 0 if words[2] == "zero" else int(words[2][1:])
    return all(
        node.data.pread(place, 512) == sector_bytes(version, place // 512)
        for place in range(offset, offset + length, 512)
    )


def _size(text: str) -> int:
    return int(text[:-1]) << 10 if text.endswith("k") else int(text)


def run_script(path: Path) -> None:
    """Run one script in a world of its own."""
    with applied(Geometry()):
        Script(path).run()
