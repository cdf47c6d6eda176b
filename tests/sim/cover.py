"""No dirty bit is lost: what differs between the copies is what their next meeting would look at.

At random moments, at changes of state, when a write is answered while a member is not settled, and
whenever the nodes are apart, it is asked: if both processes died now (or one or both machines lost
power), restarted and met, which blocks would be compared or copied, and which copy would win? Every
block that differs must be among them, and the winner must hold what was promised. The answer comes
from the core itself (`meeting.py`); nothing of the world is changed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repl.core.blockmap import BlockMap
from repl.core.handshake import SOURCE_ACTIONS, TARGET_ACTIONS, Action, decide
from repl.core.hello import Hello
from repl.core.lineage import Origin
from repl.core.states import Phase
from repl.core.volume import Volume
from repl.core.wire import PeerError
from repl.errors import ReplError
from repl.store.metadata import Metadata
from tests.sim.disk import SECTOR_BYTES, Loss
from tests.sim.meeting import Meeting
from tests.sim.node import TEAR, VOLUME, Node
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    from tests.sim.world import World

#: Mean virtual time between two questions, for a volume of this size; rarer for larger ones.
INTERVAL_S = 1.5
INTERVAL_SIZE_BYTES = 4 << 20
#: How often a change of state is a reason to ask.
AT_CHANGES = 0.06
#: The same for a step of a commit that stores a record.
AT_RECORDS = 0.05
#: Each answer is a reason while a member is brought up, and so long afterwards (virtual time).
AFTER_S = 0.05
_BROUGHT_UP = frozenset({Phase.SOURCE, Phase.JOINING})
#: Which machines lose power, as opposed to only their processes.
_CUTS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"alpha"}),
    frozenset({"beta"}),
    frozenset({"alpha", "beta"}),
)
_COMPARED_BYTES = 64 << 10


@dataclass(slots=True)
class _Side:
    """One node as it would be, or is, when it meets the other."""

    node: Node
    volume: Volume
    #: Sectors that would hold something else than the disk shows now.
    lost: dict[int, bytes] = field(default_factory=dict)

    @property
    def hello(self) -> Hello:
        return self.volume.sessions[self.node.peer]._build_hello()

    def read(self, offset: int, length: int) -> bytearray:
        found = self.node.data.image[offset : offset + length]
        for place in range(offset, offset + length, SECTOR_BYTES):
            sector = self.lost.get(place)
            if sector is not None:
                found[place - offset : place - offset + SECTOR_BYTES] = sector
        return found

    def sector(self, place: int) -> bytes | bytearray:
        return self.lost.get(place) or self.node.data.image[place : place + SECTOR_BYTES]


class Cover:
    """Asks the question for one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._choice = world.dice.world
        self._ids = random.Random(1)
        # A stream of its own: how often is asked changes nothing of what happens.
        self._answers = random.Random(2)
        self._brought_up_s = -1.0
        self.asked = 0

    def start(self) -> None:
        """Ask from now on, at random moments and at changes of state."""
        self._later()
        self._world.on_change.append(lambda: self._perhaps(AT_CHANGES))
        self._world.on_record.append(lambda: self._perhaps(AT_RECORDS))
        self._world.on_answer.append(self._answered)

    def _later(self) -> None:
        scale = max(1.0, self._world.geometry.size_bytes / INTERVAL_SIZE_BYTES)
        delay_s = INTERVAL_S * scale * 2 * self._choice.random()
        self._world.clock.after(delay_s, self._again)

    def _again(self) -> None:
        self._later()
        self.ask()

    def _perhaps(self, often: float) -> None:
        if self._choice.random() < often:
            self._world.clock.after(0.0, self.ask)

    def _answered(self, node: Node) -> None:
        """What a member that is not settled holds may not count, so this answer may rest on one."""
        session, now_s = node.core.sessions[node.peer], self._world.clock.now_s
        if session.is_member and session.phase in _BROUGHT_UP:
            self._brought_up_s = now_s
        elif now_s - self._brought_up_s > AFTER_S:
            return
        # Answers of one instant are asked about one by one, since each question draws anew who
        # loses power, and what: to ask once would find less, and spare one per cent of the time.
        self._world.clock.after(0.0, lambda: self.ask(self._answers))

    def ask(self, choice: random.Random | None = None) -> None:
        """If both died now: does the next meeting make them one?"""
        self.asked += 1
        choice = choice or self._choice
        cut = choice.choice(_CUTS)
        alpha, beta = (
            self._dead(node, node.name in cut, choice) for node in self._world.nodes.values()
        )
        when = f"if {' and '.join(sorted(cut)) or 'no machine'} lost power now"
        try:
            plot = Meeting(alpha.volume, beta.volume).plot()
        except PeerError as error:
            raise Violation(Rule.PROTOCOL, f"{when}: {error}") from error
        if plot is None:
            return
        source, target = (alpha, beta) if plot.source is alpha.volume else (beta, alpha)
        when = f"{when}: {plot.rule}"
        self._check_blocks(plot.blocks, source, target, when)
        self._check_winner(source, target, when, cut)

    def check_apart(self) -> None:
        """The nodes are apart: would the next meeting, as they are, make them one?"""
        alpha, beta = (self._present(node) for node in self._world.nodes.values())
        if alpha is None or beta is None:
            return
        decision = decide(alpha.hello, beta.hello)
        if decision.action in SOURCE_ACTIONS:
            source, target = alpha, beta
        elif decision.action in TARGET_ACTIONS:
            source, target = beta, alpha
        else:
            return
        when = f"apart: {decision.rule}"
        if decision.action not in (Action.FULL_SOURCE, Action.FULL_TARGET):
            maps = target.volume.maps
            blocks = maps.remaining.copy()
            blocks.merge(maps.dirty[source.node.name])
            blocks.merge(source.volume.maps.dirty[target.node.name])
            for side in (source, target):
                side.volume.intents.mark_suspects_in(blocks)
                for write in side.volume.writes._applying.values():
                    # It waits for room here, and will be carried out or become a suspect.
                    blocks.mark(write.offset, write.length)
            self._check_blocks(blocks, source, target, when)
        self._check_winner(source, target, when, frozenset())

    # The two sides.

    def _present(self, node: Node) -> _Side | None:
        """The node as it is: running without contact, or down."""
        if not node.running:
            return self._dead(node, False, self._choice)
        phase = node.core.sessions[node.peer].phase
        if phase is not Phase.DOWN or node.core.failed or node.core.changes.busy:
            return None
        return _Side(node, node.core)

    def _dead(self, node: Node, loses_power: bool, choice: random.Random) -> _Side:
        """The node as it would be after a crash and a restart now."""
        meta, lost = node.meta.copy(), {}
        if loses_power:
            for place, sector in node.meta.losses(Loss.SOME, choice, tear=TEAR):
                meta.image[place : place + SECTOR_BYTES] = sector
            lost = dict(node.data.losses(Loss.SOME, choice))
        try:
            loaded = Metadata.load(meta, VOLUME)
        except ReplError as error:
            text = f"{node.name}, if it crashed now: {error.lines()}"
            raise Violation(Rule.METADATA, text) from error
        boot = node.boot_number + loses_power
        return _Side(node, node.open(loaded, boot, lambda: self._ids.getrandbits(62) + 1), lost)

    # What must be so.

    def _check_blocks(self, blocks: BlockMap, source: _Side, target: _Side, when: str) -> None:
        shift, size_bytes = blocks.block_shift, blocks.size_bytes
        for block in self._differing(source, target, shift):
            if not blocks.is_set(block):
                start = block << shift
                length = min(1 << shift, size_bytes - start)
                if source.read(start, length) != target.read(start, length):
                    raise Violation(
                        Rule.DIRTY,
                        f"{when}: byte {start} differs between {source.node.name} (source) and "
                        f"{target.node.name}, and no map says so",
                    )

    def _differing(self, one: _Side, other: _Side, shift: int) -> Iterable[int]:
        """Blocks that differ on the disks, or may by what would be lost."""
        mine, theirs = one.node.data.image, other.node.data.image
        found = {place >> shift for place in (*one.lost, *other.lost)}
        if mine != theirs:
            for start in range(0, len(mine), _COMPARED_BYTES):
                end = min(start + _COMPARED_BYTES, len(mine))
                if mine[start:end] != theirs[start:end]:
                    found.update(
                        place >> shift
                        for place in range(start, end, 4096)
                        if mine[place : place + 4096] != theirs[place : place + 4096]
                    )
        return sorted(found)

    def _check_winner(self, source: _Side, target: _Side, when: str, cut: frozenset[str]) -> None:
        """What the source holds is what both will hold: it must have what was promised."""
        line = source.node.ledger
        if target.node.ledger is not line or _begins_a_line(source):
            return
        spared = [name for name in self._world.nodes if name not in cut]
        unknown = _hides_a_failure(source.node) and target.volume.facts.crashed
        durable = unknown or not line.kept_by(spared)
        line.check_written(source.sector, f"{when}: {source.node.name} would win", durable=durable)


def _hides_a_failure(node: Node) -> bool:
    """Whether a sync failed there, and the process died, or would now, before that was stored."""
    if node.running and node.core.failed and not node.laws.facts.inconsistent:
        return True
    return node.hidden_failure


def _begins_a_line(side: _Side) -> bool:
    """Whether a word that gives up data is stored there, and nobody has heard of that yet."""
    node, entries = side.node, side.volume.facts.lineage
    if node.request is None or not entries or entries[0].primary != node.node_id:
        return False
    stored = entries[0].origin in (Origin.DATA_LOST, Origin.PEER_DEAD)
    wrong = node.request.lose_data or not node.vouched_truly
    return stored and wrong and entries[0].id != node.laws.facts.generation.id
