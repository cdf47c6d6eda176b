"""The kernel's half of the handshake: step by step, against our own server, and against liars."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from repl.attach import dialing
from repl.attach.dialing import NoConnection, dial
from repl.attach.negotiation import REPLIES_MAX, Need, NotAgreed, Offer, Send, ask_for
from tests.nbdserver.serving import ServerProcess

DEADLINE_S = 10.0
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
FLAGS = nbd.NBD_FLAG_HAS_FLAGS | nbd.NBD_FLAG_SEND_FLUSH | nbd.NBD_FLAG_CAN_MULTI_CONN


def option_reply(kind: int, data: bytes = b"", option: int = 7) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


INFO_EXPORT = option_reply(3, struct.pack(">HQH", 0, 1 << 26, FLAGS))
INFO_BLOCK_SIZE = option_reply(3, struct.pack(">HIII", 3, 4096, 4096, 1 << 25))
ACK = option_reply(1)


def conversation(answers: bytes, export: str = "r0") -> tuple[bytes, Offer, bytes]:
    """Feed a server's bytes; return what was sent, the outcome, and what was left unread."""
    steps = ask_for(export)
    sent, step = b"", next(steps)
    while True:
        try:
            if isinstance(step, Send):
                sent += step.data
                step = next(steps)
            else:
                assert isinstance(step, Need)
                assert step.count <= len(answers), "it would wait for ever"
                part, answers = answers[: step.count], answers[step.count :]
                step = steps.send(part)
        except StopIteration as done:
            return sent, done.value, answers


def test_go_asks_for_the_export_and_its_block_sizes() -> None:
    sent, offer, unread = conversation(GREETING + INFO_EXPORT + INFO_BLOCK_SIZE + ACK + b"reply")
    assert sent == (
        struct.pack(">I", 3)
        + b"IHAVEOPT"
        + struct.pack(">II", 7, 10)
        + struct.pack(">I2sHH", 2, b"r0", 1, 3)
    )
    assert offer == Offer(1 << 26, FLAGS, 4096)
    assert unread == b"reply"


def test_server_that_says_nothing_of_blocks_is_taken_at_one_byte() -> None:
    _, offer, _ = conversation(GREETING + INFO_EXPORT + ACK)
    assert offer.minimum_block_bytes == 1


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1", "no NBD server"),
        (b"NBDMAGICIHAVEOPT\0\0", "no fixed newstyle"),
        (GREETING + option_reply((1 << 31) + 2, b"r0 is secondary"), "r0 is secondary"),
        (GREETING + option_reply((1 << 31) + 6), "refused with 0x80000006"),
        (GREETING + ACK, "how large"),
        (GREETING + option_reply(3, b"\0") + ACK, "how large"),
        (GREETING + option_reply(1, option=6), "another question"),
        (GREETING + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30), "another question"),
        (GREETING + INFO_BLOCK_SIZE * REPLIES_MAX, "how large"),
    ],
)
def test_answer_that_is_no_agreement_is_told_in_words(answers: bytes, words: str) -> None:
    with pytest.raises(NotAgreed, match=words):
        conversation(answers)


def test_dialled_socket_is_in_transmission_and_blocking(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    with ServerProcess(file, tmp_path) as server:
        for address in (f"127.0.0.1:{server.port}", str(server.socket)):
            sock, offer = dial(address, "", DEADLINE_S)
            with sock:
                assert offer.size_bytes == 1 << 20
                assert offer.flags & nbd.NBD_FLAG_SEND_FLUSH
                assert sock.gettimeout() is None
                sock.sendall(struct.pack(">IHHQQI", nbd.NBD_REQUEST_MAGIC, 0, 3, 77, 0, 0))
                assert sock.recv(16, socket.MSG_WAITALL) == struct.pack(
                    ">IIQ", nbd.NBD_SIMPLE_REPLY_MAGIC, 0, 77
                )


@contextmanager
def server_that(behaves: Callable[[socket.socket], object]) -> Iterator[str]:
    """Yield the address of a server with one client in its life."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            behaves(client)
            done.wait(DEADLINE_S)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


def test_held_negotiation_ends_with_the_deadline() -> None:
    with (
        server_that(lambda client: client.sendall(GREETING)) as address,
        pytest.raises(NoConnection, match="no answer in time"),
    ):
        dial(address, "r0", 0.2)


def test_server_that_hangs_up_is_told_in_words() -> None:
    def hangs_up(client: socket.socket) -> None:
        client.sendall(GREETING[:7])
        client.shutdown(socket.SHUT_WR)

    with server_that(hangs_up) as address, pytest.raises(NoConnection, match="closed"):
        dial(address, "r0", DEADLINE_S)


def test_nobody_at_the_address_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(NoConnection, match="No such file"):
        dial(str(tmp_path / "none.sock"), "r0", DEADLINE_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NoConnection, match="refused"):
        dial(f"127.0.0.1:{port}", "r0", DEADLINE_S)
    with pytest.raises(NoConnection, match="no HOST:PORT"):
        dial("alpha:port", "r0", DEADLINE_S)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10.0.0.1:7", "10.0.0.1", 7),
        ("alpha", "alpha", 10809),
        ("[fe80::1]:9", "fe80::1", 9),
        ("[fe80::1]", "fe80::1", 10809),
    ],
)
def test_addresses_are_split_as_written(address: str, host: str, port: int) -> None:
    assert dialing.host_and_port(address) == (host, port)


@pytest.mark.parametrize("address", ["", ":1", "a:0", "a:65536", "a:-1", "a:x"])
def test_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        dialing.host_and_port(address)
