"""Fuzz target: frames of a peer into the core, in every phase of a connection.

Claims: nothing but `PeerError` leaves a frame, and that costs the connection only: afterwards the
volume comes to rest, answers an operator, and meets an honest peer on a new connection without any
error of its own; what it stored can be opened again.
"""

from __future__ import annotations

from functools import cache

from repl.core.states import Phase
from repl.core.wire import HEADER_BYTES, PeerError, decode_header, verify
from tests.core.every_phase import STAGES, at
from tests.core.pair_of_cores import Node
from tests.fuzz import frames
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import Choices, claim, parted, sentence

STAGE_NAMES = tuple(STAGES)
#: Ids and numbers of a conversation of honest nodes go on from here (`Pair.ids`).
FRAMES_MAX = 12


def _feed(node: Node, stream: bytes, choices: Choices) -> None:
    """What link and engine do with received bytes: whole frames, one turn or several."""
    for number, message in enumerate(frames.split(stream)[:FRAMES_MAX]):
        try:
            if len(message) < HEADER_BYTES:
                return
            header = decode_header(message)
            payload = memoryview(message)[HEADER_BYTES:]
            if len(payload) < header.payload_bytes:
                return
            verify(header, message, payload)
            node.feed(header.type, *header[2:7], payload)
        except PeerError as error:
            sentence(str(error))
            node.session.broke_protocol(error)
            return
        if choices.flag(1, number % 8):
            node.pair.run()


def _release(node: Node) -> None:
    """Nothing is held back any more: both nodes come to rest."""
    pair = node.pair
    for each in pair.nodes:
        each.hold_commits = each.hold_incoming = each.hold_copies = False
        each.hold_syncs = each.hold_disk = False
    pair.run()


def run(data: bytes) -> None:
    """One input: the stage, then the frames."""
    choices, stream = parted(data)
    node = at(STAGE_NAMES[choices.number(0, len(STAGE_NAMES))])
    node.hold_syncs = choices.flag(2, 0)
    _feed(node, stream, choices)
    _release(node)
    claim(node.session.phase in Phase, f"{node.session.phase}")
    for reason in node.drops:
        sentence(reason)
    asked = node.promote() if choices.flag(2, 1) else node.demote()
    pair = node.pair
    pair.run()
    pair.cut()
    pair.advance(2.0)
    claim(asked in node.answers, "an operator gets no answer")
    if choices.flag(2, 2):
        pair.restart(node)
    # What the honest peer said beside the forged frames could not fit any more.
    node.broken.clear()
    pair.connect()
    pair.run()
    pair.advance(8.0, step_s=2.0)
    claim(not node.broken, f"an honest peer is said to break the protocol: {node.broken}")


@cache
def grammar() -> Grammar:
    return frames.grammar()


def seeds() -> list[bytes]:
    """Single frames; the mutator puts them together."""
    return [bytes([n % 15]) + bytes(7) + each for n, each in enumerate(frames.recorded()[:120])]
