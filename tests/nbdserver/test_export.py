"""What an export may promise, and how that looks on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo


def test_writable_export_offers_every_write_command() -> None:
    flags = ExportInfo("", 0).transmission_flags
    for flag in (
        nbd.NBD_FLAG_HAS_FLAGS,
        nbd.NBD_FLAG_SEND_FLUSH,
        nbd.NBD_FLAG_SEND_FUA,
        nbd.NBD_FLAG_SEND_TRIM,
        nbd.NBD_FLAG_SEND_WRITE_ZEROES,
    ):
        assert flags & flag
    assert not flags & (nbd.NBD_FLAG_READ_ONLY | nbd.NBD_FLAG_CAN_MULTI_CONN)


def test_read_only_export_keeps_flush_and_offers_no_trim() -> None:
    flags = ExportInfo("", 0, read_only=True).transmission_flags
    assert flags & nbd.NBD_FLAG_READ_ONLY
    assert flags & nbd.NBD_FLAG_SEND_FLUSH
    assert not flags & (nbd.NBD_FLAG_SEND_TRIM | nbd.NBD_FLAG_SEND_WRITE_ZEROES)


def test_multi_conn_is_advertised_only_when_promised() -> None:
    assert ExportInfo("", 0, can_multi_conn=True).transmission_flags & nbd.NBD_FLAG_CAN_MULTI_CONN


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_bytes": -1},
        {"size_bytes": 1 << 63},
        {"name": "a\0b"},
        {"name": "x" * 4097},
        {"description": "é" * 2049},
        {"minimum_block_bytes": 0},
        {"minimum_block_bytes": 3},
        {"minimum_block_bytes": 128 << 10},
        {"preferred_block_bytes": 256},
        {"preferred_block_bytes": 5000},
        {"minimum_block_bytes": 8192},
        {"maximum_block_bytes": 64 << 20},
        {"maximum_block_bytes": 2048},
        {"size_bytes": 1000, "minimum_block_bytes": 512},
    ],
)
def test_what_the_protocol_cannot_express_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ExportInfo(**{"name": "vol", "size_bytes": 4096, **wrong})
