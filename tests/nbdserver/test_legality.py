"""Which requests are refused, with which error, sentence and place."""

from __future__ import annotations

import pytest

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo
from nbdserver.legality import NOTHING_TO_DO, Fault, Legality
from nbdserver.terms import ReplyStyle, Terms

SIZE = 1 << 20
SIMPLE = Terms()
STRUCTURED = Terms(ReplyStyle.STRUCTURED, ("base:allocation",))
FUA = nbd.NBD_CMD_FLAG_FUA
ALL_COMMANDS = range(8)


def judge(
    command: int,
    flags: int = 0,
    offset: int = 0,
    length: int = 512,
    terms: Terms = STRUCTURED,
    export: ExportInfo | None = None,
) -> Fault | None:
    export = export or ExportInfo("", SIZE, can_fast_zero=True)
    return Legality(export, terms).judge(command, flags, offset, length)


@pytest.mark.parametrize("command", [c for c in ALL_COMMANDS if c != nbd.NBD_CMD_DISC])
def test_fua_is_legal_on_every_command(command: int) -> None:
    length = 0 if command == nbd.NBD_CMD_FLUSH else 512
    assert judge(command, FUA, 0, length) is None


LEGAL = {
    (nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_FLAG_NO_HOLE),
    (nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_FLAG_FAST_ZERO),
    (nbd.NBD_CMD_READ, nbd.NBD_CMD_FLAG_DF),
    (nbd.NBD_CMD_BLOCK_STATUS, nbd.NBD_CMD_FLAG_REQ_ONE),
}


@pytest.mark.parametrize("command", [c for c in ALL_COMMANDS if c != nbd.NBD_CMD_DISC])
@pytest.mark.parametrize("bit", range(1, 16))
def test_flag_is_legal_only_where_it_belongs(command: int, bit: int) -> None:
    length = 0 if command == nbd.NBD_CMD_FLUSH else 512
    fault = judge(command, 1 << bit, 0, length)
    if (command, 1 << bit) in LEGAL:
        assert fault is None
    else:
        assert fault is not None
        assert fault.error == nbd.NBD_EINVAL


def test_unfragmented_reads_need_replies_in_chunks() -> None:
    fault = judge(nbd.NBD_CMD_READ, nbd.NBD_CMD_FLAG_DF, terms=SIMPLE)
    assert fault == Fault(nbd.NBD_EINVAL, "READ with DF, which it does not take here")


def test_fast_zero_that_is_not_offered_is_invalid() -> None:
    fault = judge(nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_FLAG_FAST_ZERO, export=ExportInfo("", SIZE))
    assert fault is not None
    assert (fault.error, "FAST_ZERO" in fault.text) == (nbd.NBD_EINVAL, True)


def test_block_status_without_contexts_is_invalid() -> None:
    fault = judge(nbd.NBD_CMD_BLOCK_STATUS, terms=Terms(ReplyStyle.STRUCTURED))
    assert fault is not None
    assert (fault.error, "context" in fault.text) == (nbd.NBD_EINVAL, True)


@pytest.mark.parametrize("command", [nbd.NBD_CMD_RESIZE, 9, 0xFFFF])
def test_unknown_command_is_named_in_the_refusal(command: int) -> None:
    fault = judge(command)
    assert fault is not None
    assert fault.error == nbd.NBD_EINVAL
    assert ("RESIZE" if command == nbd.NBD_CMD_RESIZE else str(command)) in fault.text


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (nbd.NBD_CMD_READ, nbd.NBD_EINVAL),
        (nbd.NBD_CMD_WRITE, nbd.NBD_ENOSPC),
        (nbd.NBD_CMD_TRIM, nbd.NBD_EINVAL),
        (nbd.NBD_CMD_CACHE, nbd.NBD_EINVAL),
        (nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_ENOSPC),
        (nbd.NBD_CMD_BLOCK_STATUS, nbd.NBD_EINVAL),
    ],
)
@pytest.mark.parametrize(
    ("offset", "length", "at"),
    [
        (SIZE - 512, 1024, SIZE),
        (SIZE, 1, SIZE),
        (SIZE + 4096, 512, SIZE + 4096),
        (2**64 - 512, 512, 2**64 - 512),
    ],
)
def test_request_past_the_end_names_its_first_byte_past_the_end(
    command: int, error: int, offset: int, length: int, at: int
) -> None:
    fault = judge(command, 0, offset, length)
    assert fault is not None
    assert (fault.error, fault.offset) == (error, at)
    assert fault.text.endswith(f" of {length} bytes at {offset}: the export ends at {SIZE}")


def test_empty_requests_have_nothing_to_do_but_must_be_in_range() -> None:
    assert judge(nbd.NBD_CMD_READ, 0, SIZE, 0) is NOTHING_TO_DO
    assert judge(nbd.NBD_CMD_TRIM, FUA, 0, 0) is NOTHING_TO_DO
    past = judge(nbd.NBD_CMD_WRITE, 0, SIZE + 1, 0)
    assert past is not None
    assert (past.error, past.offset) == (nbd.NBD_ENOSPC, None)


@pytest.mark.parametrize("command", [nbd.NBD_CMD_READ, nbd.NBD_CMD_WRITE])
def test_payload_above_the_advertised_maximum_is_refused(command: int) -> None:
    export = ExportInfo("", SIZE, maximum_block_bytes=64 << 10)
    assert judge(command, 0, 0, 64 << 10, export=export) is None
    fault = judge(command, 0, 0, (64 << 10) + 1, export=export)
    assert fault is not None
    assert (fault.error, "65536" in fault.text) == (nbd.NBD_EINVAL, True)
    assert judge(nbd.NBD_CMD_WRITE_ZEROES, 0, 0, SIZE, export=export) is None


@pytest.mark.parametrize("command", [0, 1, 4, 5, 6, 7])
def test_unaligned_request_is_refused_with_the_block_size(command: int) -> None:
    export = ExportInfo("", SIZE, minimum_block_bytes=4096)
    assert judge(command, 0, 4096, 8192, export=export) is None
    for offset, length in ((512, 4096), (4096, 512)):
        fault = judge(command, 0, offset, length, export=export)
        assert fault is not None
        assert (fault.error, "blocks of 4096" in fault.text) == (nbd.NBD_EINVAL, True)


def test_read_only_export_refuses_writers_and_allows_the_rest() -> None:
    export = ExportInfo("", SIZE, read_only=True)
    writers = (nbd.NBD_CMD_WRITE, nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES)
    for command in writers:
        fault = judge(command, 0, 0, 512, export=export)
        assert fault is not None
        assert fault.error == nbd.NBD_EPERM
    for command in (nbd.NBD_CMD_READ, nbd.NBD_CMD_CACHE, nbd.NBD_CMD_BLOCK_STATUS):
        assert judge(command, 0, 0, 512, export=export) is None
    assert judge(nbd.NBD_CMD_FLUSH, 0, 0, 0, export=export) is None
