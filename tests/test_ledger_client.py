"""The ledger's client against a plain file served by `python -m nbdserver`, truthful and lying."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import ROOT, wait_for
from tests.ledger import Ledger, LedgerViolated
from tests.ledger_client import LedgerClient, judge_over_nbd

SIZE_BYTES = 4 << 20
BLOCK_BYTES = 4096


class FileServer:
    """`python -m nbdserver` on a file, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.socket = folder / "nbd.sock"
        with self.image.open("wb") as image:
            image.truncate(SIZE_BYTES)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbdserver", str(self.image), "--socket", str(self.socket)],
            cwd=ROOT,
        )
        wait_for(self.socket.exists, 30, "nbdserver makes its socket")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server() -> Iterator[FileServer]:
    folder = Path(tempfile.mkdtemp(prefix="repl-ledger-"))
    server = FileServer(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(SIZE_BYTES // BLOCK_BYTES, seed=11, block_bytes=BLOCK_BYTES)


def test_honest_server_passes_with_many_requests_in_flight(
    server: FileServer, ledger: Ledger
) -> None:
    with LedgerClient(ledger, server.uri, flush_every=20, fua_every=7, zero_every=9) as client:
        client.wait_acknowledged(500)
    assert client.error_replies == []
    assert client.connection_losses == []
    assert client.flushes > 0
    judge_over_nbd(ledger, server.uri)
    ledger.judge_file(server.image)


def test_one_flipped_block_behind_the_server_is_caught(server: FileServer, ledger: Ledger) -> None:
    with LedgerClient(ledger, server.uri, region=range(64)) as client:
        client.wait_acknowledged(300)
    ledger.judge_file(server.image)
    with server.image.open("r+b") as image:
        image.seek(17 * BLOCK_BYTES + 100)
        byte = image.read(1)
        image.seek(17 * BLOCK_BYTES + 100)
        image.write(bytes([byte[0] ^ 1]))
    with pytest.raises(LedgerViolated, match="block 17"):
        judge_over_nbd(ledger, server.uri)


def test_write_that_went_back_in_time_is_caught(server: FileServer, ledger: Ledger) -> None:
    with LedgerClient(ledger, server.uri, region=range(32)) as client:
        client.wait_acknowledged(300)
    earlier = server.image.read_bytes()
    mark = ledger.last_version
    with LedgerClient(ledger, server.uri, seed=1, region=range(32)) as client:
        client.wait_acknowledged(300)
    assert ledger.blocks_written_since(mark)
    server.image.write_bytes(earlier)
    with pytest.raises(LedgerViolated, match="holds version"):
        ledger.judge_file(server.image)


def test_book_survives_the_death_of_its_server(server: FileServer, ledger: Ledger) -> None:
    client = LedgerClient(ledger, server.uri, depth=64).start()
    client.wait_acknowledged(200)
    server.kill()
    client.join()
    assert client.connection_losses
    assert client.error_replies == []
    assert ledger.in_flight == 0
    server.start()
    judge_over_nbd(ledger, server.uri)
    with LedgerClient(ledger, server.uri, seed=1) as client:
        client.wait_acknowledged(200)
    judge_over_nbd(ledger, server.uri)


def test_reconnecting_client_continues_on_the_same_book(server: FileServer, ledger: Ledger) -> None:
    with LedgerClient(ledger, server.uri, reconnect=True) as client:
        client.wait_acknowledged(200)
        server.kill()
        server.start()
        client.wait_acknowledged(200)
    assert client.connections >= 2
    assert client.error_replies == []
    judge_over_nbd(ledger, server.uri)
