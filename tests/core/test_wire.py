"""Frames and their bodies: exact, checked, and unable to raise anything but PeerError.

The second half plays the peer that breaks the protocol, in every phase of a connection.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import Phase as Steps
from hypothesis import strategies as st

from repl.core import hello as hellos
from repl.core import wire
from repl.core.hello import Hello
from repl.core.lineage import Generation, Origin
from repl.core.states import Phase
from repl.core.wire import (
    HEADER_BYTES,
    NUMBER_MAX,
    PAYLOAD_BYTES_MAX,
    Fields,
    PeerError,
    Type,
    decode_body,
    decode_frames,
    decode_header,
    encode_body,
    encode_control,
    encode_header,
    verify,
)
from tests.core.every_phase import STAGES, at
from tests.core.pair_of_cores import BLOCK, SIZE, Node

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
JSON_FRAMES = sorted(
    {Type.HELLO, Type.DECISION, Type.START, Type.READY, Type.PROMOTE_ASK, Type.PROMOTE_ANSWER}
    | {Type.LEAVE, Type.GOODBYE, Type.STATUS, Type.GENERATION}
    | {Type.FORK, Type.RESOLVE_ASK, Type.RESOLVE_ANSWER}
)
DATA_FRAMES = (Type.WRITE, Type.RESYNC_WRITE)
BARE_FRAMES = sorted(
    set(Type) - set(JSON_FRAMES) - set(DATA_FRAMES) - {Type.MAP, Type.DIGEST, Type.DIFFERENT}
)


# Headers.


@given(st.sampled_from(list(Type)), st.binary(max_size=300), U64, U64, U64, U64, U32)
def test_a_header_reads_back_as_it_was_written(
    kind: Type, payload: bytes, seq: int, offset: int, length: int, generation: int, flags: int
) -> None:
    if kind in BARE_FRAMES:
        payload = b""
    elif kind in DATA_FRAMES:
        length = len(payload)
    frame = encode_header(kind, payload, seq, offset, length, generation, flags) + payload
    header = decode_header(b"xyz" + frame, 3)
    assert header[:7] == (kind, len(payload), seq, offset, length, generation, flags)
    verify(header, b"xyz" + frame, payload, 3)


@given(st.binary(min_size=1, max_size=80), st.data())
def test_every_changed_bit_of_a_frame_is_noticed(payload: bytes, draw: st.DataObject) -> None:
    frame = bytearray(encode_header(Type.WRITE, payload, 5, 4096, len(payload), 7, 1) + payload)
    place = draw.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(PeerError):
        verify(decode_header(frame), frame, memoryview(frame)[HEADER_BYTES:])


@given(st.lists(st.tuples(st.sampled_from(list(Type)), st.binary(max_size=40)), max_size=6), U64)
def test_frames_of_a_stream_read_back_whole_and_in_order(
    wanted: list[tuple[Type, bytes]], number: int
) -> None:
    frames = [
        (kind, number, 1, len(payload) if kind in DATA_FRAMES else 7, 3, 1, payload)
        for kind, payload in wanted
        if not (payload and kind in BARE_FRAMES)
    ]
    stream = b"".join(
        encode_header(kind, payload, seq, offset, length, generation, flags) + payload
        for kind, seq, offset, length, generation, flags, payload in frames
    )
    for cut in {len(stream), max(0, len(stream) - 1)}:
        found, rest = decode_frames(memoryview(b"x" + stream), 1, 1 + cut)
        assert [(*frame[:-1], bytes(frame[-1])) for frame in found] == frames[: len(found)]  # type: ignore[call-overload]
        assert len(found) == len(frames) - (cut < len(stream))
        assert rest == 1 + sum(HEADER_BYTES + len(frame[-1]) for frame in frames[: len(found)])


def test_every_byte_of_an_empty_frames_header_is_covered() -> None:
    for place in range(HEADER_BYTES):
        for value in (0x01, 0x80, 0xFF):
            frame = bytearray(encode_header(Type.PING, b""))
            frame[place] ^= value
            with pytest.raises(PeerError):
                verify(decode_header(frame), frame, b"")


def test_a_frame_may_announce_the_limit_and_not_one_byte_more() -> None:
    most, more = bytes(PAYLOAD_BYTES_MAX), bytes(PAYLOAD_BYTES_MAX + 1)
    decode_header(encode_header(Type.WRITE, most, length=len(most)))
    with pytest.raises(PeerError, match="the limit is 262144"):
        decode_header(encode_header(Type.WRITE, more, length=len(more)))


@pytest.mark.parametrize("kind", [*BARE_FRAMES, *DATA_FRAMES])
def test_an_impossible_length_is_refused_before_its_bytes_are_waited_for(kind: Type) -> None:
    frame = bytearray(encode_header(kind, b"", length=0))
    frame[6] ^= 1  # 256 bytes more
    with pytest.raises(PeerError, match="announces 256 bytes"):
        decode_header(frame)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [(0, 0, "magic"), (2, 9, "version 9"), (3, 0, "unknown type 0"), (3, 99, "unknown type 99")],
)
def test_a_foreign_header_is_refused_in_words(place: int, value: int, sentence: str) -> None:
    frame = bytearray(encode_header(Type.PING, b""))
    frame[place] = value
    with pytest.raises(PeerError, match=sentence):
        decode_header(frame)


# Bodies.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=True)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=9), max_size=6))
def test_a_body_reads_back_as_it_was_written(body: dict[str, Any]) -> None:
    frame = encode_control(Type.STATUS, body, generation=9)
    header = decode_header(frame)
    assert (header.type, header.generation) == (Type.STATUS, 9)
    verify(header, frame, frame[HEADER_BYTES:])
    assert decode_body(Type.STATUS, frame[HEADER_BYTES:]) == body


@given(st.binary(max_size=60))
@example(b"")
@example(b"[1]")
@example(b"null")
@example(b"[" * 100_000)
@example(b'{"a":' + b"9" * 10_000 + b"}")
@example(b"\xff\xfe\x00")
def test_a_body_that_is_no_object_is_the_peers_error(payload: bytes) -> None:
    try:
        body = decode_body(Type.HELLO, memoryview(payload))
    except PeerError as error:
        assert "HELLO" in str(error)
    else:
        assert isinstance(body, dict)


@given(JSON)
def test_a_field_of_the_wrong_type_is_the_peers_error(value: object) -> None:
    fields = Fields("STATUS", {"it": value})
    for read in (fields.number, fields.flag, fields.text, fields.numbers, fields.objects):
        try:
            read("it")
        except PeerError as error:
            assert "STATUS" in str(error) and "'it'" in str(error)
        with pytest.raises(PeerError):
            read("missing")


@pytest.mark.parametrize(
    ("method", "good", "bad"),
    [
        ("number", [0, NUMBER_MAX], [-1, NUMBER_MAX + 1, True, 1.0, "1", None]),
        ("flag", [True, False], [0, 1, "true", None]),
        ("text", ["", "x" * 500], ["x" * 501, 5, None, ["x"]]),
        ("numbers", [[], [0, NUMBER_MAX]], [[-1], [True], ["1"], 5, [0] * 4097]),
        ("objects", [[], [{}]], [[1], {}, [None], [{}] * 4097]),
    ],
)
def test_fields_take_exactly_their_type(method: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        getattr(Fields("X", {"it": value}), method)("it")
    for value in bad:
        with pytest.raises(PeerError):
            getattr(Fields("X", {"it": value}), method)("it")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_text_that_cannot_be_written_to_a_log_is_the_peers_error(text: str) -> None:
    body = decode_body(Type.GOODBYE, json.dumps({"sentence": text}).encode())
    with pytest.raises(PeerError):
        Fields("GOODBYE", body).text("sentence")


IDS = st.integers(1, NUMBER_MAX)


@st.composite
def a_hello(draw: st.DrawFn) -> Hello:
    ids = draw(st.lists(IDS, max_size=5, unique=True))
    top = draw(st.integers(len(ids) + 1, 1 << 40))
    lineage = tuple(
        Generation(
            counter=top - place,
            id=identifier,
            primary=draw(st.integers(0, NUMBER_MAX)),
            members=tuple(sorted(draw(st.sets(IDS, min_size=1, max_size=3)))),
            answered=draw(st.booleans()),
            origin=draw(st.sampled_from(Origin)),
            made_at_s=draw(st.integers(0, 1 << 40)),
            permit=draw(st.text("abc ö—", max_size=40)),
        )
        for place, identifier in enumerate(ids)
    )
    flag = st.booleans()
    return Hello(
        protocol=draw(st.integers(0, 9)),
        node=draw(st.text("abc-9", max_size=64)),
        volume=draw(st.text("abc-9", max_size=64)),
        node_id=draw(IDS),
        volume_id=draw(IDS) if lineage else 0,
        size_bytes=draw(IDS),
        block_shift=draw(st.integers(12, 40)),
        lineage=lineage,
        is_primary=draw(flag),
        cache_lost=draw(flag),
        crashed=draw(st.none() | flag),
        inconsistent=draw(flag),
        everything_suspect=draw(flag),
        outdated=draw(flag),
        known_zeroes=draw(flag),
        has_dirt=draw(flag),
        known_peer_id=draw(st.integers(0, NUMBER_MAX)),
        tokens=tuple(draw(st.lists(IDS, max_size=2))),
        base_from=draw(st.integers(0, NUMBER_MAX)),
        base_to=draw(st.integers(0, NUMBER_MAX)),
    )


@given(a_hello())
def test_a_hello_reads_back_as_it_was_written(hello: Hello) -> None:
    payload = encode_body(hellos.to_json(hello))
    assert hellos.from_json(decode_body(Type.HELLO, payload)) == hello


@given(a_hello(), st.data())
def test_a_hello_with_any_field_replaced_is_read_or_refused(
    hello: Hello, draw: st.DataObject
) -> None:
    body: dict[str, Any] = json.loads(json.dumps(hellos.to_json(hello)))
    places: list[dict[str, Any]] = [body, *body["lineage"]]
    place = places[draw.draw(st.integers(0, len(places) - 1))]
    name = draw.draw(st.sampled_from(sorted(place)))
    del place[name]
    if draw.draw(st.integers(0, 1)):
        place[name] = draw.draw(JSON)
    try:
        hellos.from_json(decode_body(Type.HELLO, json.dumps(body).encode()))
    except PeerError as error:
        assert str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": 0},
        {"volume_id": 0},
        {"lineage": []},
    ],
)
def test_an_impossible_hello_is_the_peers_error(change: dict[str, Any]) -> None:
    node = at("established-primary")
    body = hellos.to_json(node.session._build_hello()) | change
    with pytest.raises(PeerError):
        hellos.from_json(body)


# A peer that breaks the protocol, in every phase.

NAMES = {
    Type.HELLO: ["protocol", "node", "volume", "node_id", "lineage", "tokens"],
    Type.DECISION: ["action", "rule", "token"],
    Type.START: ["settle", "whole", "generation"],
    Type.READY: ["whole"],
    Type.PROMOTE_ASK: ["number", "generation", "resume"],
    Type.PROMOTE_ANSWER: ["number", "agree", "reason"],
    Type.LEAVE: ["outdated", "x"],
    Type.GOODBYE: ["code", "sentence"],
    Type.STATUS: ["role", "disk_state"],
    Type.GENERATION: ["volume_id", "lineage"],
    Type.FORK: ["clients", "client_names", "kept", "agreed"],
    Type.RESOLVE_ASK: ["number", "keep_me", "generation"],
    Type.RESOLVE_ANSWER: ["number", "agree", "code", "reason", "next"],
}
VALUES: st.SearchStrategy[Any] = (
    JSON
    | st.integers(0, 2000)
    | st.sampled_from(["settle-source", "resync-target", "refuse", "yield", "await-yield", "wait"])
    | st.just([{}])
)


@st.composite
def control_frame(draw: st.DrawFn) -> tuple[Type, bytes]:
    kind = draw(st.sampled_from(JSON_FRAMES))
    body = draw(st.dictionaries(st.sampled_from(NAMES[kind]), VALUES))
    if draw(st.booleans()):
        body |= PLAUSIBLE.get(kind, {})
    return kind, json.dumps(body).encode()


PLAUSIBLE: dict[Type, dict[str, Any]] = {
    Type.DECISION: {"action": "settle-source", "rule": "x", "token": 5},
    Type.START: {"settle": True, "whole": False, "generation": 1003},
    Type.READY: {"whole": False},
    Type.PROMOTE_ASK: {"number": 1, "generation": 1003, "resume": False},
    Type.PROMOTE_ANSWER: {"number": 1, "agree": True, "reason": ""},
    Type.STATUS: {"role": "primary", "disk_state": "up-to-date"},
    Type.FORK: {"clients": 1, "client_names": ["x"], "kept": False, "agreed": True},
    Type.RESOLVE_ASK: {"number": 1, "keep_me": False, "generation": 1005},
    Type.RESOLVE_ANSWER: {"number": 0, "agree": True, "code": "", "reason": "", "next": ""},
}
OFFSETS = st.sampled_from([0, 1, BLOCK, SIZE - BLOCK, SIZE, NUMBER_MAX, (1 << 64) - 1])
LENGTHS = st.sampled_from([0, 1, BLOCK, SIZE, PAYLOAD_BYTES_MAX, (1 << 64) - 1])
OTHER_FRAMES = [kind for kind in Type if kind not in JSON_FRAMES]


@st.composite
def other_frame(draw: st.DrawFn, node: Node) -> tuple[Type, int, int, int, int, int, bytes]:
    """A frame without a JSON body; half of the time with the number and generation expected."""
    kind = draw(st.sampled_from(OTHER_FRAMES))
    expected = node.session.receiver.applied_seq + 1
    facts = node.volume.facts
    current = facts.generation.id if facts.lineage else 0
    seq = draw(st.sampled_from([expected, expected + 1, 0, 1, current, NUMBER_MAX]))
    generation = draw(st.sampled_from([current, 0, 1, node.session.receiver._generation()]))
    sizes = st.sampled_from([0, 1, 16, BLOCK, node.volume.maps.remaining.page_bytes])
    payload = bytes(draw(sizes))
    length = draw(LENGTHS)
    if kind in (Type.WRITE, Type.RESYNC_WRITE) and draw(st.booleans()):
        length = len(payload)
    return kind, seq, draw(OFFSETS), length, generation, draw(U32), payload


def survives(node: Node) -> None:
    """The node ends the connection or not; its volume goes on, and so does an honest peer."""
    node.pair.alpha.hold_commits = node.pair.beta.hold_commits = False
    node.hold_incoming = node.other.hold_incoming = False
    node.pair.alpha.hold_copies = node.pair.beta.hold_copies = False
    node.pair.run()


def feed_or_drop(node: Node, frame: tuple[Any, ...]) -> None:
    """What the engine does with a frame."""
    try:
        node.feed(*frame)
    except PeerError as error:
        assert str(error)
        node.session.drop(str(error))


#: A failing example is short by its making; shrinking it would build hundreds of pairs.
FUZZ = settings(
    max_examples=25,
    deadline=None,
    phases=(Steps.explicit, Steps.reuse, Steps.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("stage", STAGES)
@FUZZ
@given(frames=st.lists(control_frame(), min_size=1, max_size=4))
def test_no_control_frame_raises_anything_but_peer_error(
    stage: str, frames: list[tuple[Type, bytes]]
) -> None:
    node = at(stage)
    for kind, payload in frames:
        feed_or_drop(node, (kind, 0, 0, 0, 0, 0, payload))
    survives(node)
    assert node.session.phase in Phase


@pytest.mark.parametrize("stage", STAGES)
@FUZZ
@given(draw=st.data())
def test_no_other_frame_raises_anything_but_peer_error(stage: str, draw: st.DataObject) -> None:
    node = at(stage)
    for _ in range(draw.draw(st.integers(1, 4))):
        feed_or_drop(node, draw.draw(other_frame(node)))
    survives(node)
    assert node.session.phase in Phase


def test_a_bad_frame_behind_a_held_one_costs_the_connection_and_nothing_else() -> None:
    """What a commit releases is processed in the commit's turn: PeerError must not leave there."""
    node = at("established-secondary")
    node.hold_commits = True
    generation = node.volume.facts.generation.id
    node.feed(Type.WRITE, 1, 0, BLOCK, generation, 0, bytes(BLOCK))
    node.feed(Type.WRITE, 9, 0, BLOCK, generation, 0, bytes(BLOCK))
    assert node.session.receiver.backlog == 2
    survives(node)
    assert node.session.phase is Phase.DOWN


def test_a_bad_decision_that_came_early_costs_the_connection_and_nothing_else() -> None:
    """It waits for this side's own decision, which waits for a commit."""
    node = at("greeting-decided")
    node.feed_body(Type.DECISION, {"action": "nonsense", "rule": "", "token": 0})
    survives(node)
    assert node.session.phase is Phase.DOWN


def test_good_frames_before_a_bad_one_in_the_same_turn_do_no_harm() -> None:
    """The connection is gone when the engine carries out what the good frame asked for."""
    pair = at("established-primary").pair
    for fill in (1, 2, 3):
        pair.alpha.write(0, bytes([fill]) * BLOCK)
        pair.run()
    node, generation = pair.beta, pair.beta.volume.facts.generation.id
    feed_or_drop(node, (Type.WRITE, 4, 0, BLOCK, generation, 0, bytes(BLOCK)))
    feed_or_drop(node, (Type.WRITE, 9, 0, BLOCK, generation, 0, bytes(BLOCK)))
    survives(node)
    assert node.session.phase is Phase.DOWN


def test_a_confirmation_from_a_peer_that_was_told_nothing_is_its_error() -> None:
    """Else a peer that is behind could move its map's base up to the newest generation (G7)."""
    node = at("source")
    with pytest.raises(PeerError):
        node.feed(Type.GENERATION_STORED, node.volume.facts.generation.id)


def test_settled_in_the_middle_of_a_resync_is_the_peers_error() -> None:
    """It would empty the remaining map of an inconsistent copy (design §1.5)."""
    node = at("target")
    assert node.volume.maps.remaining.count
    feed_or_drop(node, (Type.SETTLED,))
    survives(node)
    assert node.volume.maps.remaining.count or not node.volume.facts.inconsistent
    assert node.volume.facts.inconsistent


def test_ready_that_contradicts_the_start_is_the_peers_error() -> None:
    """A whole copy that the target calls a partial one would leave blocks out."""
    node = at("source-starting")
    with pytest.raises(PeerError):
        node.feed_body(Type.READY, {"whole": True})


def test_the_encoder_refuses_a_body_over_the_limit_loudly() -> None:
    with pytest.raises(AssertionError):
        wire.encode_body({"x": "y" * PAYLOAD_BYTES_MAX})


def test_a_lineage_longer_than_any_record_is_the_peers_error() -> None:
    """Else what is stored of it would not fit the superblock, and the worker would end."""
    node = at("established-secondary")
    newest = node.volume.facts.generation
    entries = [
        hellos.generation_to_json(
            replace(newest, counter=newest.counter + 2000 - step, id=10**6 + step)
        )
        for step in range(1200)
    ]
    with pytest.raises(PeerError):
        node.feed_body(
            Type.GENERATION, {"volume_id": node.volume.facts.volume_id, "lineage": entries}
        )
