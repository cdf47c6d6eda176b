"""Which part of the core a peer's frame is for.

Frames of the ordered stream go through the receiver, which takes them strictly in their order and
may hold them; the others act at once. Raises `PeerError` for what breaks the protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from repl.core import chronicle
from repl.core.states import Phase
from repl.core.wire import Fields, Frame, PeerError, Type, decode_body

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

_STREAM = frozenset(
    {
        Type.WRITE,
        Type.ZERO,
        Type.RESYNC_WRITE,
        Type.RESYNC_ZERO,
        Type.DIGEST,
        Type.SYNC,
        Type.GENERATION,
        Type.SETTLED,
        Type.CLEAR_INTENTS,
        Type.START,
        Type.PROMOTE_ASK,
        Type.LEAVE,
    }
)
#: Those of them that carry a JSON object.
_STREAM_OBJECTS = frozenset({Type.START, Type.GENERATION, Type.PROMOTE_ASK, Type.LEAVE})


def route(volume: Volume, peer: str, frames: list[Frame]) -> None:
    """Take the verified frames of one wake-up from a peer, in their order."""
    session = volume.sessions[peer]
    index, count = 0, len(frames)
    while index < count and session.phase is not _DOWN:
        session.live.received_s = volume.now
        frame = frames[index]
        if frame[0] is _WRITE and not volume.failed:
            behind = session.receiver.writes(frames, index)
            if behind > index:
                index = behind
                continue
        if not volume.failed or frame[0] is Type.LEAVE_STORED:
            _route(volume, session, frame)
        index += 1


_DOWN = Phase.DOWN
_WRITE = Type.WRITE


def _route(volume: Volume, session: Session, frame: Frame) -> None:
    kind, seq, offset, length, generation, flags, payload = frame
    if kind is Type.ACK:
        session.on_ack(seq, offset)
    elif kind in _STREAM:
        if kind in _STREAM_OBJECTS:
            payload = decode_body(kind, payload)  # type: ignore[arg-type]
        session.receiver.frame((kind, seq, offset, length, generation, flags, payload))
    elif kind is Type.MAP:
        if session.source is not None:
            session.source.map_page(offset, bytes(payload))  # type: ignore[call-overload]
        elif session.split is not None:
            session.split.divergence.map_page(offset, bytes(payload))  # type: ignore[call-overload]
        else:
            session.receiver.frame((kind, 0, offset, 0, 0, 0, payload))
    elif kind is Type.DIFFERENT:
        if session.source is None:
            raise PeerError("DIFFERENT: nothing is being compared")
        session.source.different(seq, bytes(payload))  # type: ignore[call-overload]
    elif kind in _BARE:
        _bare(volume, session, kind, seq)
    elif kind in _SPLIT_BARE or kind in _SPLIT_OBJECTS:
        _split(session, kind, seq, payload)
    else:
        _object(volume, session, kind, decode_body(kind, payload))  # type: ignore[arg-type]


_BARE = frozenset({Type.PING, Type.PONG, Type.GENERATION_STORED, Type.LEAVE_STORED})
#: Only while both sides know that they are in a split-brain.
_SPLIT_BARE = frozenset({Type.DISCARD, Type.DISCARDED})
_SPLIT_OBJECTS = frozenset({Type.FORK, Type.RESOLVE_ASK, Type.RESOLVE_ANSWER})


def _bare(volume: Volume, session: Session, kind: Type, seq: int) -> None:
    if kind is Type.PING:
        session.send(Type.PONG)
    elif kind is Type.PONG:
        session.live.pong_came(volume.now)
        volume.absence.answered(session, session.live.ponged())
    elif kind is Type.GENERATION_STORED:
        volume.changes.confirmed(session, seq)
    elif kind is Type.LEAVE_STORED:
        volume.roles.on_leave_stored(session)


def _split(session: Session, kind: Type, seq: int, payload: object) -> None:
    split = session.split
    if split is None:
        raise PeerError(f"{kind.name}: there is no split-brain")
    if kind is Type.DISCARD:
        split.on_discard(seq)
    elif kind is Type.DISCARDED:
        split.on_discarded(seq)
    else:
        fields = Fields(kind.name, decode_body(kind, payload))  # type: ignore[arg-type]
        if kind is Type.FORK:
            split.divergence.on_fork(fields)
        elif kind is Type.RESOLVE_ASK:
            split.on_ask(fields)
        else:
            split.on_answer(fields)


def _object(volume: Volume, session: Session, kind: Type, body: dict[str, Any]) -> None:
    fields = Fields(kind.name, body)
    if kind is Type.HELLO:
        session.on_hello(body)
    elif kind is Type.DECISION:
        session.on_decision(fields)
    elif kind is Type.READY:
        if session.source is None:
            raise PeerError("READY: nothing was started")
        session.source.ready(fields)
        volume.roles.try_resume(session)
    elif kind is Type.PROMOTE_ANSWER:
        volume.roles.on_answer(session, fields)
    elif kind is Type.STATUS:
        session.on_status(fields)
    elif kind is Type.GOODBYE:
        session.refusal, session.refusal_code = fields.text("sentence"), fields.text("code", 40)
        chronicle.refused(session)
        session.drop(f"{session.name} refused: {session.refusal}")
