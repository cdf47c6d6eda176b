"""A client's request as the core is asked for it."""

from __future__ import annotations

from repl.core.outbox import WriteKind
from repl.core.volume import Volume
from tests.sim.ledger import Op, OpKind

_KINDS = {
    OpKind.WRITE: WriteKind.WRITE,
    OpKind.ZERO: WriteKind.ZERO,
    OpKind.TRIM: WriteKind.TRIM,
}


def give(volume: Volume, op: Op) -> None:
    """Hand the request to the core, within a turn."""
    if op.kind is OpKind.FLUSH:
        volume.client_flush(op)
    elif op.kind is OpKind.READ:
        volume.client_read(op)
    else:
        volume.client_write(op, _KINDS[op.kind], op.offset, op.length, op.fua)
