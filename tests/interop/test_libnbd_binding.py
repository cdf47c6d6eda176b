"""python3-libnbd, synchronous calls: simple and structured replies, contexts, errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests import libnbd
from tests.daemon import MIB
from tests.interop.conftest import Connect
from tests.interop.targets import SIZE_BYTES, Target
from tests.nbdserver.serving import ServerProcess

KIB = 1 << 10
#: What base:allocation says of a hole in a sparse file.
HOLE = 3


def handle_for(export: Target) -> Any:
    """A handle that is not connected and, where TLS is required, speaks that."""
    nbd = libnbd.load()
    handle = nbd.NBD()
    if export.client is not None:
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_certificates(str(export.client))
    return handle


def statuses(handle: Any, offset: int, length: int, flags: int = 0) -> dict[str, list[Any]]:
    """(length, status) pairs by context."""
    found: dict[str, list[Any]] = {}

    def seen(context: str, _offset: int, entries: list[int], _error: Any) -> int:
        found[context] = list(zip(entries[::2], entries[1::2], strict=True))
        return 0

    handle.block_status(length, offset, seen, flags)
    return found


def parts(handle: Any, length: int, offset: int, flags: int = 0) -> list[tuple[int, int, str]]:
    """(offset, length, kind) of the chunks that a structured read came in."""
    nbd = libnbd.load()
    kinds = {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}
    found = []

    def seen(data: bytes, at: int, kind: int, _error: Any) -> int:
        found.append((at, len(data), kinds[kind]))
        return 0

    handle.pread_structured(length, offset, seen, flags)
    return found


def test_size_flags_and_block_sizes_are_announced(export: Target, connect: Connect) -> None:
    nbd = libnbd.load()
    handle = connect(export.uri())
    assert handle.get_size() == SIZE_BYTES
    assert handle.get_protocol() == "newstyle-fixed"
    assert handle.get_structured_replies_negotiated()
    assert not handle.is_read_only()
    assert not handle.is_rotational()
    for offered in (
        handle.can_flush,
        handle.can_fua,
        handle.can_trim,
        handle.can_zero,
        handle.can_fast_zero,
        handle.can_cache,
        handle.can_df,
        handle.can_multi_conn,
    ):
        assert offered(), offered
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert handle.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB


@pytest.mark.parametrize("over", ["unix", "tcp"])
@pytest.mark.parametrize("structured", [True, False])
def test_what_was_written_is_read_back(
    export: Target, connect: Connect, over: str, structured: bool
) -> None:
    uri = export.uri() if over == "unix" else export.tcp_uri()
    handle = connect(uri, set_request_structured_replies=structured)
    assert handle.get_structured_replies_negotiated() is structured
    generator = random.Random(1)
    for offset, length in ((0, 1), (511, 2), (4095, 8194), (SIZE_BYTES - 100, 100)):
        data = generator.randbytes(length)
        handle.pwrite(data, offset)
        assert bytes(handle.pread(length, offset)) == data
    handle.flush()


@pytest.mark.parametrize("handshake_flags", [0, 1, 3])
def test_client_of_any_age_can_connect(
    export: Target, connect: Connect, handshake_flags: int
) -> None:
    if export.client is not None and not handshake_flags:
        # Without fixed newstyle there are no options, and so no way to begin TLS.
        with pytest.raises(libnbd.load().Error):
            connect(export.uri(), set_handshake_flags=handshake_flags)
        return
    handle = connect(export.uri(), set_handshake_flags=handshake_flags)
    handle.pwrite(b"old", 100)
    assert handle.pread(3, 100) == b"old"


def test_largest_request_of_32_mebibytes_is_served(export: Target, connect: Connect) -> None:
    handle = connect(export.uri())
    data = random.Random(2).randbytes(32 * MIB)
    handle.pwrite(data, 16 * MIB)
    assert bytes(handle.pread(32 * MIB, 16 * MIB)) == data


def test_zeroed_range_reads_as_zeroes_with_edges_untouched(
    export: Target, connect: Connect
) -> None:
    nbd = libnbd.load()
    handle = connect(export.uri())
    handle.pwrite(b"\xaa" * (256 << 10), MIB)
    handle.zero(100_001, MIB + 777)
    handle.zero(50_000, MIB + 150_000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    handle.zero(10_000, MIB + 220_000, nbd.CMD_FLAG_FAST_ZERO)
    found = bytes(handle.pread(256 << 10, MIB))
    expected = bytearray(b"\xaa" * (256 << 10))
    expected[777 : 777 + 100_001] = bytes(100_001)
    expected[150_000:200_000] = bytes(50_000)
    expected[220_000:230_000] = bytes(10_000)
    assert found == bytes(expected)


def test_trimmed_range_keeps_its_edges(export: Target, connect: Connect) -> None:
    handle = connect(export.uri())
    handle.pwrite(b"\xbb" * (256 << 10), 2 * MIB)
    handle.trim(200_000, 2 * MIB + 1000)
    handle.flush()
    found = bytes(handle.pread(256 << 10, 2 * MIB))
    assert found[:1000] == b"\xbb" * 1000
    assert found[201_000:] == b"\xbb" * ((256 << 10) - 201_000)


def test_write_flushed_on_one_connection_is_read_on_another(
    export: Target, connect: Connect
) -> None:
    handles = [connect(export.uri()) for _ in range(6)]
    for number, handle in enumerate(handles):
        handle.pwrite(bytes([number + 1]) * 4096, number * 4096)
    handles[0].flush()
    for handle in reversed(handles):
        found = bytes(handle.pread(6 * 4096, 0))
        assert found == b"".join(bytes([number + 1]) * 4096 for number in range(6))


def test_structured_reads_tell_holes_from_data(blank: Target, connect: Connect) -> None:
    handle = connect(blank.uri())
    handle.pwrite(b"d" * 64 * KIB, 64 * KIB)
    assert parts(handle, 256 * KIB, 0) == [
        (0, 64 * KIB, "hole"),
        (64 * KIB, 64 * KIB, "data"),
        (128 * KIB, 128 * KIB, "hole"),
    ]
    assert parts(handle, 16 * KIB, 80 * KIB) == [(80 * KIB, 16 * KIB, "data")]


def test_unfragmented_read_comes_in_one_piece(blank: Target, connect: Connect) -> None:
    handle = connect(blank.uri())
    handle.pwrite(b"d" * 4096, 8192)
    df = libnbd.load().CMD_FLAG_DF
    assert parts(handle, 64 * KIB, 0, df) == [(0, 64 * KIB, "data")]
    assert parts(handle, 32 * MIB, 0, df) == [(0, 32 * MIB, "data")]


def test_block_status_answers_every_context_that_was_selected(
    blank: Target, connect: Connect
) -> None:
    nbd = libnbd.load()
    handle = nbd.NBD()
    for name in (*blank.contexts, "x-repl:out-of-sync:nobody", "qemu:dirty-bitmap:none"):
        handle.add_meta_context(name)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(blank.uri())
    handle.pwrite(b"d" * 64 * KIB, MIB)
    found = statuses(handle, 0, 2 * MIB)
    assert set(found) == set(blank.contexts)
    assert found["base:allocation"] == [(MIB, HOLE), (64 * KIB, 0), (960 * KIB, HOLE)]
    if "x-repl:out-of-sync:beta" in found:
        assert found["x-repl:out-of-sync:beta"] == [(2 * MIB, 0)]
    one = statuses(handle, MIB - 4096, MIB, nbd.CMD_FLAG_REQ_ONE)
    assert one["base:allocation"] == [(4096, HOLE)]
    handle.shutdown()


def test_contexts_are_listed_by_wildcards(export: Target) -> None:
    handle = handle_for(export)
    handle.set_opt_mode(True)
    handle.connect_unix(str(export.path))
    handle.set_export_name("r0")

    def listed(*queries: str) -> list[str]:
        found: list[str] = []
        handle.clear_meta_contexts()
        for query in queries:
            handle.add_meta_context(query)
        handle.opt_list_meta_context(found.append)
        return found

    mine = [name for name in export.contexts if name.startswith("x-repl:")]
    assert listed() == list(export.contexts)
    assert listed("base:") == ["base:allocation"]
    assert listed("x-repl:") == mine
    assert listed("x-repl:out-of-sync:") == mine
    assert listed("qemu:", "base:nothing") == []
    handle.opt_abort()


def test_exports_are_listed_with_their_descriptions(export: Target) -> None:
    handle = handle_for(export)
    handle.set_opt_mode(True)
    handle.connect_unix(str(export.path))
    listed: list[str] = []

    def seen(name: str, description: str) -> int:
        assert description
        listed.append(name)
        return 0

    handle.opt_list(seen)
    handle.opt_abort()
    assert listed == ["r0"]


def test_default_export_tells_its_canonical_name(export: Target, connect: Connect) -> None:
    handle = connect(export.uri(""))
    assert handle.get_canonical_export_name() == "r0"
    assert "r0" in handle.get_export_description() or handle.get_export_description() == "a file"


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("lambda handle, size: handle.pread(512, size)", "EINVAL"),
        ("lambda handle, size: handle.pwrite(b'x', size)", "ENOSPC"),
        ("lambda handle, size: handle.zero(2, size - 1)", "ENOSPC"),
        ("lambda handle, size: handle.trim(2, size - 1)", "EINVAL"),
        ("lambda handle, size: handle.cache(2, size - 1)", "EINVAL"),
        ("lambda handle, size: handle.block_status(2, size - 1, lambda *_: 0)", "EINVAL"),
        ("lambda handle, size: handle.pread(33 << 20, 0)", "EINVAL"),
        ("lambda handle, size: handle.pwrite(b'x', 0, 1 << 3)", "EINVAL"),
    ],
)
def test_error_has_the_right_number_and_the_connection_lives(
    export: Target, connect: Connect, operation: str, error: str
) -> None:
    nbd = libnbd.load()
    handle = connect(export.uri())
    with pytest.raises(nbd.Error) as raised:
        eval(operation)(handle, SIZE_BYTES)
    assert raised.value.errno == error
    assert len(handle.pread(512, SIZE_BYTES - 512)) == 512


def test_structured_read_error_names_the_byte(export: Target, connect: Connect) -> None:
    nbd = libnbd.load()
    handle = connect(export.uri())
    seen = []

    def chunk(_data: bytes, offset: int, kind: int, error: Any) -> int:
        seen.append((offset, kind, error.value))
        return 0

    with pytest.raises(nbd.Error):
        handle.pread_structured(1024, SIZE_BYTES - 512, chunk)
    assert seen == [(SIZE_BYTES, nbd.READ_ERROR, 22)]


def test_hints_and_empty_requests_succeed(export: Target, connect: Connect) -> None:
    handle = connect(export.uri())
    handle.cache(SIZE_BYTES, 0)
    handle.trim(0, 0)
    handle.zero(0, 0)
    handle.pwrite(b"", 0)
    assert handle.pread(0, 0) == b""


def test_read_only_export_refuses_what_is_forced_through(connect: Connect, tmp_path: Path) -> None:
    nbd = libnbd.load()
    disk = tmp_path / "disk"
    disk.write_bytes(b"kept" + bytes(MIB - 4))
    with ServerProcess(disk, tmp_path, "--read-only") as server:
        handle = connect(server.uri)
        assert handle.is_read_only()
        for name, arguments in (("pwrite", (b"x", 0)), ("zero", (1, 0)), ("trim", (1, 0))):
            with pytest.raises(nbd.Error) as raised:
                getattr(handle, name)(*arguments)
            assert raised.value.errno == "EPERM"
        handle.flush()
        assert handle.pread(4, 0) == b"kept"
        handle.shutdown()
