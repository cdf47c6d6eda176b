"""Clients that speak TLS to `python -m nbdserver`, and those who try to get around it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from nbdserver.protocol import Option, Reply
from nbdserver.tls import TlsServerFiles, problem_of
from tests.certificates import expire, make_certificates, make_client, server_folder
from tests.nbdserver.conftest import DISK_BYTES
from tests.nbdserver.serving import ServerProcess, wait_for
from tests.nbdserver.tls_client import TlsEnd, client_context, start_tls
from tests.nbdserver.wire import RawClient, disc, go, info_data, option, read, request, write

MIB = 1 << 20


class Pki:
    """One authority, a server's certificate, and clients called ann and bob."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_certificates(folder / "pki", "server")
        self.server = server_folder(self.folder, "server")
        self.ann, self.bob = (make_client(self.folder, name) for name in ("ann", "bob"))
        self.ca = self.folder / "ca.crt"

    def context(self, client: Path | None = None) -> ssl.SSLContext:
        return client_context(self.ca, client)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that requires TLS and certificates, for a whole module: two exports, one for ann."""
    folder = tmp_path_factory.mktemp("server")
    for name in ("disk.img", "hers.img"):
        (folder / name).touch()
        os.truncate(folder / name, DISK_BYTES)
    with ServerProcess(
        folder / "disk.img",
        folder,
        f"--ro={folder / 'hers.img'}",
        "--tls=required",
        f"--tls-certificates={pki.server}",
        "--tls-verify-clients",
        "--client=hers.img=ann",
    ) as process:
        yield process
        assert process.stop() == 0
        assert not [line for line in process.log if "Traceback" in line], process.log


def works(server: ServerProcess, pki: Pki) -> None:
    """An honest client is served."""
    with start_tls(RawClient.to_tcp(server.port).greet(), pki.context(pki.ann)) as client:
        assert begun(client, b"disk.img") == DISK_BYTES
        assert client.ask(write(0, b"honest")) == 0
        assert client.ask_read(0, 6) == b"honest"


def begun(client: RawClient, name: bytes) -> int:
    """After TLS: GO; the size of the export."""
    client.send(go(name))
    size = -1
    while (reply := client.option_reply()).type != Reply.ACK:
        assert reply.type == Reply.INFO, reply
        if reply.data[:2] == b"\0\0":
            _, size, _ = struct.unpack(">HQH", reply.data)
    return size


def test_ready_line_names_the_encrypted_scheme(secure: ServerProcess) -> None:
    assert secure.tcp_uri.startswith("nbds://127.0.0.1:")


def test_plaintext_over_tcp_gets_nothing_where_tls_is_required(
    secure: ServerProcess, pki: Pki
) -> None:
    with RawClient.to_tcp(secure.port).greet() as client:
        for asked in (option(Option.LIST), go(b"disk.img"), option(12)):
            client.send(asked)
            assert client.option_reply().type == Reply.ERR_TLS_REQD
    with RawClient.to_tcp(secure.port).greet() as client:
        client.send(option(Option.EXPORT_NAME, b"disk.img"))
        assert client.is_closed_by_server()
    works(secure, pki)


def test_unix_socket_takes_both_and_is_not_asked_for_names(secure: ServerProcess, pki: Pki) -> None:
    with RawClient.to_unix(secure.socket) as client:
        assert client.go(b"hers.img") == DISK_BYTES
    with start_tls(RawClient.to_unix(secure.socket).greet(), pki.context(pki.bob)) as client:
        assert begun(client, b"hers.img") == DISK_BYTES


def test_export_is_shown_and_given_only_to_the_clients_it_is_for(
    secure: ServerProcess, pki: Pki
) -> None:
    for folder, listed, answer in (
        (pki.ann, [b"disk.img", b"hers.img"], Reply.ACK),
        (pki.bob, [b"disk.img"], Reply.ERR_POLICY),
    ):
        with start_tls(RawClient.to_tcp(secure.port).greet(), pki.context(folder)) as client:
            client.send(option(Option.LIST))
            found = []
            while (reply := client.option_reply()).type == Reply.SERVER:
                found.append(reply.data[4:])
            assert found == listed
            for number in (Option.INFO, Option.GO):
                client.send(option(number, info_data(b"hers.img")))
                while (reply := client.option_reply()).type == Reply.INFO:
                    pass
                assert reply.type == answer
                if answer == Reply.ACK:
                    break
    with start_tls(RawClient.to_tcp(secure.port).greet(), pki.context(pki.bob)) as client:
        client.send(option(Option.EXPORT_NAME, b"hers.img"))
        assert client.is_closed_by_server()


@pytest.mark.parametrize("who", ["nobody", "stranger", "expired"])
def test_client_without_a_good_certificate_is_refused_and_logged_once(
    secure: ServerProcess, pki: Pki, tmp_path: Path, who: str
) -> None:
    context = pki.context()
    if who == "stranger":
        others = make_certificates(tmp_path / "others", "server")
        context = client_context(pki.ca, make_client(others, "ann"))
    elif who == "expired":
        folder = shutil.copytree(pki.ann, tmp_path / "ann")
        expire(pki.folder, folder)
        context = pki.context(folder)
    before = len(secure.log)
    client = RawClient.to_tcp(secure.port).greet()
    # In TLS 1.3 a client learns of it only after its own handshake is done.
    with pytest.raises((ssl.SSLError, ConnectionError)):
        start_tls(client, context).option_reply()
    client.close()
    wait_for(lambda: len(secure.log) > before, "it is logged")
    (line,) = secure.log[before:]
    reason = {"nobody": "did not return a certificate", "stranger": "certificate not accepted"}
    assert reason.get(who, "certificate has expired") in line.replace("peer ", "")
    works(secure, pki)


def test_server_is_verified_by_its_name_and_address(secure: ServerProcess, pki: Pki) -> None:
    for name in ("server", "localhost", "127.0.0.1"):
        context = ssl.create_default_context(cafile=str(pki.ca))
        context.load_cert_chain(pki.ann / "client-cert.pem", pki.ann / "client-key.pem")
        with RawClient.to_tcp(secure.port).greet() as client:
            client.send(option(Option.STARTTLS))
            assert client.option_reply().type == Reply.ACK
            with context.wrap_socket(client.sock, server_hostname=name) as session:
                assert session.version() == "TLSv1.3"


@pytest.mark.parametrize("behind", [b"\0", option(Option.LIST), go(b"disk.img")])
def test_plaintext_pipelined_behind_starttls_is_never_answered(
    secure: ServerProcess, pki: Pki, behind: bytes
) -> None:
    with RawClient.to_tcp(secure.port).greet() as client:
        client.send(option(Option.STARTTLS) + behind)
        with pytest.raises(ConnectionError):
            client.option_reply()
    works(secure, pki)


def test_plaintext_in_place_of_the_tls_handshake_is_never_taken_for_the_clients(
    secure: ServerProcess, pki: Pki
) -> None:
    with RawClient.to_tcp(secure.port).greet() as client:
        client.send(option(Option.STARTTLS))
        assert client.option_reply().type == Reply.ACK
        client.send(go(b"disk.img") + write(0, b"evil"))
        found = b""
        while part := client.sock.recv(4096):
            found += part
        assert nbd.NBD_REP_MAGIC.to_bytes(8, "big") not in found
    assert secure.file.read_bytes()[:4] != b"evil"
    works(secure, pki)


def test_what_was_negotiated_in_plaintext_is_forgotten(
    disk: Path, tmp_path: Path, pki: Pki
) -> None:
    with ServerProcess(
        disk, tmp_path, "--tls=allowed", f"--tls-certificates={pki.server}"
    ) as server:
        assert server.tcp_uri.startswith("nbd://")
        client = RawClient.to_tcp(server.port).greet()
        client.send(option(Option.STRUCTURED_REPLY))
        assert client.option_reply().type == Reply.ACK
        with start_tls(client, pki.context()) as tls:
            begun(tls, b"")
            assert tls.ask_read(0, 512) == bytes(512), "a simple reply"
        with RawClient.to_tcp(server.port) as plain:
            assert plain.go() == server.size_bytes, "plaintext is as welcome as before"


def test_large_transfers_pass_both_ways_unchanged(secure: ServerProcess, pki: Pki) -> None:
    data = random.Random(5).randbytes(32 * MIB)
    with start_tls(RawClient.to_tcp(secure.port).greet(), pki.context(pki.ann)) as client:
        begun(client, b"disk.img")
        assert client.ask(write(1000, data)) == 0
        # Many answers are due before the client reads the first.
        for number in range(32):
            client.send(read(1000 + number * MIB, MIB, cookie=number))
        left = set(range(32))
        while left:
            error, number = client.reply()
            assert error == 0
            left.remove(number)
            assert client.receive(MIB) == data[number * MIB : (number + 1) * MIB]
        client.send(disc())
        assert client.is_closed_by_server()
    assert secure.file.read_bytes()[1000 : 1000 + len(data)] == data


def test_half_written_request_of_a_client_that_is_cut_off_changes_nothing(
    secure: ServerProcess, pki: Pki
) -> None:
    with start_tls(RawClient.to_tcp(secure.port).greet(), pki.context(pki.ann)) as client:
        begun(client, b"disk.img")
        assert client.ask(write(0, bytes(MIB))) == 0
        client.send(write(0, b"x" * MIB)[: MIB // 2])
    works(secure, pki)
    assert secure.file.read_bytes()[6:MIB] == bytes(MIB - 6)


@pytest.mark.parametrize("how", ["disc", "goodbye", "abort"])
def test_everything_asked_is_answered_and_the_server_says_goodbye(
    secure: ServerProcess, pki: Pki, how: str
) -> None:
    sock = RawClient.to_tcp(secure.port).greet()
    with start_tls(sock, pki.context(pki.ann)) as client:
        end = client.sock
        assert isinstance(end, TlsEnd)
        if how == "abort":
            client.send(option(Option.ABORT))
            assert client.option_reply().type == Reply.ACK
        else:
            begun(client, b"disk.img")
            asked = b"".join(write(n * 4096, b"w" * 4096, cookie=n) for n in range(50))
            client.send(asked + read(0, MIB, cookie=99) + (disc() if how == "disc" else b""))
            if how == "goodbye":
                end.say_goodbye()
            left = set(range(50)) | {99}
            while left:
                error, cookie = client.reply()
                assert error == 0
                left.remove(cookie)
                if cookie == 99:
                    client.receive(MIB)
        assert client.is_closed_by_server()
        assert end.server_said_goodbye


def test_client_that_never_shakes_hands_is_dropped_by_the_deadline(
    disk: Path, tmp_path: Path, pki: Pki
) -> None:
    with ServerProcess(
        disk,
        tmp_path,
        "--tls=required",
        f"--tls-certificates={pki.server}",
        "--limit=handshake_deadline_s=0.5",
    ) as server:
        with RawClient.to_tcp(server.port).greet() as client:
            client.send(option(Option.STARTTLS))
            assert client.option_reply().type == Reply.ACK
            assert client.is_closed_by_server()
        wait_for(lambda: bool(server.log), "it is logged")
        assert server.log[0].endswith("dropped: the handshake took too long")


def test_dead_proxy_costs_its_own_clients_only_and_is_counted(
    disk: Path, tmp_path: Path, pki: Pki
) -> None:
    arguments = ("--tls=required", f"--tls-certificates={pki.server}", "--limit=tls_proxies=2")
    with ServerProcess(disk, tmp_path, *arguments) as server:
        first, second = (
            start_tls(RawClient.to_tcp(server.port).greet(), pki.context()) for _ in range(2)
        )
        for client in (first, second):
            begun(client, b"")
            assert client.ask(write(0, b"x")) == 0
        pids = server.proxy_pids()
        assert len(pids) == 2
        before = server.open_descriptors()
        os.kill(pids[0], signal.SIGKILL)
        assert first.is_closed_by_server()
        assert second.ask(write(0, b"y")) == 0
        wait_for(lambda: server.open_descriptors() < before, "the lost client is forgotten")
        wait_for(lambda: bool(server.log), "the loss is noticed")
        for _ in range(2):
            with start_tls(RawClient.to_tcp(server.port).greet(), pki.context()) as later:
                begun(later, b"")
                assert later.ask_read(0, 1) == b"y"
        assert len(server.proxy_pids()) == 2
        server.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: len(server.log) >= 2, "counters are printed")
        assert f"TLS proxy process {pids[0]} ended" in server.log[0]
        counted = json.loads(server.log[1].removeprefix("nbdserver: "))["handshakes"]
        assert (counted["tls_proxies_lost"], counted["encrypted"]) == (1, 4)
        second.close()
        first.close()
        assert server.stop() == 0


def test_stopped_server_answers_what_it_has_and_leaves_no_process(
    disk: Path, tmp_path: Path, pki: Pki
) -> None:
    arguments = ("--tls=required", f"--tls-certificates={pki.server}")
    with (
        ServerProcess(disk, tmp_path, *arguments) as server,
        start_tls(RawClient.to_tcp(server.port).greet(), pki.context()) as client,
    ):
        begun(client, b"")
        assert client.ask(write(0, b"kept")) == 0
        pids = server.proxy_pids()
        assert server.stop() == 0
        assert client.is_closed_by_server()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert server.log == []


def test_killed_server_leaves_no_proxy_behind(disk: Path, tmp_path: Path, pki: Pki) -> None:
    with ServerProcess(
        disk, tmp_path, "--tls=required", f"--tls-certificates={pki.server}"
    ) as server:
        pids = server.proxy_pids()
        assert len(pids) == 2
        server.stop(signal.SIGKILL)
        wait_for(lambda: not [pid for pid in pids if alive(pid)], "the proxies are gone")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_file_that_does_not_fit_is_the_one_that_is_named(tmp_path: Path, pki: Pki) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    certificate, key_file = (str(pki.server / f"server-{part}.pem") for part in ("cert", "key"))
    files = TlsServerFiles(certificate, key_file, str(pki.ca))
    assert problem_of(files) == ""
    authority = dataclasses.replace(files, authority=str(bad))
    assert problem_of(authority) == f"{bad} holds no certificate in PEM form"
    key = dataclasses.replace(files, key=str(bad))
    assert problem_of(key).startswith(f"{files.certificate} and {bad} cannot be used: ")


def test_renewed_certificate_is_used_without_a_restart(
    disk: Path, tmp_path: Path, pki: Pki
) -> None:
    own = shutil.copytree(pki.server, tmp_path / "own")
    with (
        ServerProcess(disk, tmp_path, "--tls=required", f"--tls-certificates={own}") as server,
        start_tls(RawClient.to_tcp(server.port).greet(), pki.context()) as before,
    ):
        begun(before, b"")
        renewed = make_certificates(tmp_path / "renewed", "server")
        for name, source in (("cert", "crt"), ("key", "key")):
            shutil.copy(renewed / f"server.{source}", own / f"server-{name}.pem")
        context = client_context(renewed / "ca.crt")
        with start_tls(RawClient.to_tcp(server.port).greet(), context) as after:
            begun(after, b"")
            assert after.ask(write(0, b"new")) == 0
        assert before.ask_read(0, 3) == b"new"


def test_request_beyond_the_limits_of_the_wire_is_refused_and_the_stream_kept(
    secure: ServerProcess, pki: Pki
) -> None:
    with start_tls(RawClient.to_tcp(secure.port).greet(), pki.context(pki.ann)) as client:
        begun(client, b"disk.img")
        assert client.ask(request(nbd.NBD_CMD_WRITE, DISK_BYTES - 1, 4096, bytes(4096))) == 28
        assert client.ask(write(0, b"on")) == 0
