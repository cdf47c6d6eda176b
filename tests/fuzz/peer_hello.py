"""Fuzz target: who a peer says it is: the preamble, a clear refusal, and two hellos.

Claims: only `PreambleError` and `PeerError` leave the decoders; what was understood reads back as
itself; any two hellos that are taken for possible are decided alike by both sides, in words.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

from repl.core import hello as hellos
from repl.core.handshake import MIRROR, decide
from repl.core.hello import Hello
from repl.core.wire import HEADER_BYTES, PeerError, Type, decode_body, encode_control
from repl.link import preamble
from repl.link.preamble import PREAMBLE_BYTES, Preamble, PreambleError
from repl.link.tls import refusal_in
from tests.core.every_phase import STAGES, at
from tests.fuzz import frames
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted, sentence


def _preamble(data: bytes) -> None:
    try:
        found = preamble.decode(data[:PREAMBLE_BYTES])
    except PreambleError as error:
        sentence(str(error))
        return
    again = preamble.decode(preamble.encode(found))
    claim(again == found, f"{found} reads back as {again}")


def _hello(payload: bytes) -> Hello | None:
    try:
        hello = hellos.from_json(decode_body(Type.HELLO, payload))
    except PeerError as error:
        sentence(str(error))
        return None
    again = hellos.from_json(json.loads(json.dumps(hellos.to_json(hello))))
    claim(again == hello, f"{hello} reads back as {again}")
    return hello


def _mirrored(mine: Hello, theirs: Hello) -> None:
    here, there = decide(mine, theirs), decide(theirs, mine)
    claim(MIRROR[here.action] is there.action, f"{here.action} and {there.action}")
    claim(here.rule == there.rule, f"{here.rule} and {there.rule}")
    claim(here.sentence and there.sentence, f"{here.rule} without words")


def run(data: bytes) -> None:
    """One input: a preamble, or frames whose bodies are hellos."""
    choices, stream = parted(data)
    if choices.flag(0, 0):
        _preamble(stream)
        return
    if choices.flag(0, 1):
        sentence(refusal_in(stream))
        return
    found = [
        hello
        for message in frames.split(stream)
        if (hello := _hello(message[HEADER_BYTES:])) is not None
    ]
    for mine, other in pairwise(found):
        # Sides of one size, or nothing but the first rule would ever be tried, that say the same of
        # the generations they share: for others `session` finds that the decisions do not fit.
        _mirrored(mine, _of_one_history(mine, other))


def _of_one_history(mine: Hello, theirs: Hello) -> Hello:
    """Their hello with what mine says of the same generations, and of mine's size."""
    known = {each.id: each for each in mine.lineage}
    lineage = tuple(
        replace(each, members=known[each.id].members, primary=known[each.id].primary)
        if each.id in known
        else each
        for each in theirs.lineage
    )
    return replace(
        theirs, size_bytes=mine.size_bytes, block_shift=mine.block_shift, lineage=lineage
    )


def _bodies() -> list[dict[str, Any]]:
    found = []
    for stage in STAGES:
        node = at(stage)
        found += [hellos.to_json(each.session._build_hello()) for each in node.pair.nodes]
    return found


@cache
def _samples() -> tuple[bytes, ...]:
    bodies = _bodies()
    changed = [
        body | {name: not body[name]}
        for body in bodies[:4]
        for name in ("is_primary", "cache_lost", "inconsistent", "outdated", "known_zeroes")
    ]
    odd = [body | {"lineage": body["lineage"][1:]} for body in bodies[:6]]
    return tuple(encode_control(Type.HELLO, body) for body in (*bodies, *changed, *odd))


@cache
def grammar() -> Grammar:
    return Grammar(frames.split, _samples(), frames.FIELDS, frames.repair)


def seeds() -> list[bytes]:
    """Pairs of hellos, a preamble, a refusal."""
    samples = _samples()
    pairs = [bytes(8) + samples[n] + samples[n + 1] for n in range(0, len(samples) - 1, 2)]
    called = preamble.encode(Preamble("r0", "alpha", "beta", tls=True))
    refused = preamble.encode_refusal("tls-required", "beta takes encrypted connections only")
    return [*pairs, b"\1" + bytes(7) + called, b"\2" + bytes(7) + refused]
