"""Scripted conversations: one command or expectation a line, run on the simulated world.

    start alpha beta            the processes start (`fresh NODE unknown` before: not known zeroes)
    stop NODE | crash NODE      a clean stop | SIGKILL
    power [all|some|none] NODE… the machines lose power, and of the unsynced sectors what is said
    freeze NODE | thaw NODE     SIGSTOP | SIGCONT
    cut | connect               break the link and keep it down | let it be made again
    hold NODE commits|syncs|reads|zeroings|link     nothing of that kind goes on there until
                                                    `release NODE`
    full NODE | room NODE       no block can be added to its backing | there is room again
    fail NODE syncs|writes|reads    the disk refuses to, until the process is started again
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
`NODE shows-differing BYTES` (in a split-brain).

    python -m tests.sim.script FILE…             run these; say which line does not come true
    python -m tests.sim.script --rewrite FILE…   make such lines say what happens instead

A line that was rewritten is what the code does, not what it should do: read the difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from repl.core.promotion import PromoteRequest
from repl.core.snapshot import split_brain_snapshot
from repl.core.verdict import Verdict
from tests.sim.client import Client, Load
from tests.sim.disk import DataDisk, Loss, Operation, SectorDisk
from tests.sim.geometry import Geometry, applied
from tests.sim.ledger import Op, OpKind, sector_bytes
from tests.sim.node import Node
from tests.sim.world import World

EXPECT_S = 20.0


class ScriptError(AssertionError):
    """A line of a script did not come true."""


class NotSo(ScriptError):
    """An expectation that did not come true; everything else went well."""


class Script:
    """One script and its world."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.world = World(1, verbose=True)
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
            self._run_line(number, raw)

    def rewritten(self) -> str:
        """Run every line; return the script with what happens in place of what was expected."""
        lines = []
        for number, raw in enumerate(self.path.read_text().splitlines(), 1):
            try:
                self._run_line(number, raw)
            except NotSo as error:
                line, hash_sign, comment = raw.partition("#")
                words = self._observed(line.split()[1:], error)
                spaces = line[len(line.rstrip()) :] if hash_sign else ""
                raw = f"expect {' '.join(words)}{spaces}{hash_sign}{comment}"
            lines.append(raw)
        return "\n".join(lines) + "\n"

    def _run_line(self, number: int, raw: str) -> None:
        line = raw.split("#")[0].strip()
        if not line:
            return
        self.world.say("script", line)
        try:
            self._line(line.split())
        except AssertionError as error:
            trace = "\n".join(self.world.log[-60:])
            text = f"{self.path.name}:{number}: {line}: {error or 'not so'}\n{trace}"
            kind = NotSo if type(error) is NotSo else ScriptError
            raise kind(text) from error

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
            world.excuse("the script lets an operator lie")
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
            node.data.mend()
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
        elif verb in ("full", "room"):
            node.full = verb == "full"
        elif verb == "power":
            node.lose_power(loss, world.dice.disks)
        elif verb == "fail":
            node.data.failing.add(Operation(words[1].removesuffix("s")))
        else:
            self._hold_or_save(verb, node, words)

    def _hold_or_save(self, verb: str, node: Node, words: list[str]) -> None:
        network = self.world.network
        if verb == "hold":
            if words[1] == "link":
                network.hold(node.name)
            else:
                assert words[1] in ("commits", "syncs", "reads", "zeroings"), words[1]
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
        elif verb == "adopt":
            self.verdicts.clear()
            node.adopt(self.verdicts.append)
        elif verb == "resolve":
            self.verdicts = self.world.lines.resolve(node, self.world.nodes[words[0]])
        elif verb == "continue":
            self.verdicts.clear()
            self.world.let_go_on(node, self.verdicts.append)
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
            if holds():
                raise NotSo("it is so")
        else:
            self._until(self._condition(words))

    def _until(self, condition: Callable[[], bool]) -> None:
        clock = self.world.clock
        if not clock.run_until(clock.now_s + EXPECT_S, condition):
            raise NotSo("it did not come true")

    def _observed(self, words: list[str], error: NotSo) -> list[str]:
        """What is so, in the words of an expectation that is not."""
        if words[0] == "not":
            return words[1:]
        if words[0] in ("granted", "refused"):
            if not self.verdicts:
                raise error
            verdict = self.verdicts[0]
            return ["granted"] if verdict.ok else ["refused", verdict.code]
        if words[0] == "handshake":
            rules = [
                line.split(": ")[2]
                for line in self.world.log[self._shakes_from :]
                if " handshake with " in line
            ]
            return ["handshake", rules[-1]] if rules else ["not", *words]
        if words[0] == "resync":
            return [*words[:3], str(self.world.resync_bytes)]
        if words[0] in self.world.nodes and words[1] in _VALUES:
            node = self.world.nodes[words[0]]
            return [words[0], words[1], _VALUES[words[1]](node)]
        return ["not", *words]

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
        assert node.running, f"{node.name} is not running"
        wanted = words[0]
        if what in ("dirty", "shows-differing"):
            wanted = str(_size(wanted))
        elif what == "members":
            wanted = ",".join(sorted(wanted.split(",")))
        value = _VALUES[what]
        return lambda: node.volume is not None and value(node) == wanted


def _members(node: Node) -> str:
    generation = node.core.commits.stored.generation
    return ",".join(sorted(node.world.names_of(generation.members)))


#: What a node shows, by the word of the expectation.
_VALUES: dict[str, Callable[[Node], str]] = {
    "role": lambda node: node.core.role_text,
    "disk": lambda node: node.core.disk_state_text,
    "phase": lambda node: node.core.sessions[node.peer].phase.value,
    "members": _members,
    "intents": lambda node: str(node.core.maps.intents.count),
    "dirty": lambda node: str(node.core.maps.dirty[node.peer].set_bytes),
    "shows-differing": lambda node: str(
        split_brain_snapshot(node.core).get("differing_bytes_at_most")
    ),
}


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


def main(argv: list[str] | None = None) -> int:
    """Run scripts, or rewrite what they expect; return 0 if all came true."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.script")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rewrite", action="store_true", help="write what happens into the files")
    arguments = parser.parse_args(argv)
    failed = 0
    for path in arguments.files:
        with applied(Geometry()):
            try:
                if arguments.rewrite:
                    path.write_text(Script(path).rewritten())
                else:
                    Script(path).run()
            except ScriptError as error:
                failed += 1
                print(error)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
