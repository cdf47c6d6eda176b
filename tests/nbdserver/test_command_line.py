"""What the arguments mean, and in which words they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdserver import limits
from nbdserver.admission import TlsMode
from nbdserver.command_line import (
    BlockSizes,
    Encryption,
    Served,
    Settings,
    parse_address,
    parse_arguments,
    parse_block_sizes,
    parse_file,
)
from nbdserver.tls import TlsServerFiles

NOWHERE = {"PATH": "/bin"}


def parsed(*arguments: str) -> Settings:
    settings = parse_arguments([*arguments, "--socket=/s"], NOWHERE)
    assert settings is not None
    return settings


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments, NOWHERE)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", ("host", 1)),
        ("host", ("host", 10809)),
        ("0.0.0.0:1234", ("0.0.0.0", 1234)),
        ("[::]", ("::", 10809)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", 10809)),
    ],
)
def test_address_forms_are_all_understood(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("disk.img", (None, "disk.img")),
        ("data=disk.img", ("data", "disk.img")),
        ("=disk.img", ("", "disk.img")),
        ("a=b=c", ("a", "b=c")),
        ("./a=b", (None, "./a=b")),
        ("/dev/disk/by-id/x=y", (None, "/dev/disk/by-id/x=y")),
    ],
)
def test_name_before_a_file_has_no_slash(text: str, found: tuple[str | None, str]) -> None:
    name, path = parse_file(text)
    assert (name, str(path)) == (found[0], found[1].removeprefix("./"))


def test_single_file_is_the_default_export() -> None:
    assert parsed("disk.img").files == (Served("", Path("disk.img"), False),)
    assert parsed("disk.img", "--name=vol").files[0].name == "vol"
    assert parsed("vol=disk.img", "--read-only").files == (Served("vol", Path("disk.img"), True),)


def test_several_files_have_names_and_rights_of_their_own() -> None:
    settings = parsed("/srv/a.img", "data=b.img", "--ro", "/srv/c.iso", "--ro", "d=e")
    assert settings.files == (
        Served("a.img", Path("/srv/a.img"), False),
        Served("data", Path("b.img"), False),
        Served("c.iso", Path("/srv/c.iso"), True),
        Served("d", Path("e"), True),
    )


def test_limits_and_block_sizes_are_taken_from_their_options() -> None:
    settings = parsed("f", "--limit=clients=3", "--limit", "total_bytes=64MiB", "--block-size=512")
    assert (settings.limits.clients, settings.limits.total_bytes) == (3, 64 << 20)
    assert settings.block_sizes == BlockSizes(512, 4096, 32 << 20)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1", (1, 4096, 32 << 20)),
        ("65536", (65536, 65536, 32 << 20)),
        ("512,8192", (512, 8192, 32 << 20)),
        ("512,4096,1048576", (512, 4096, 1 << 20)),
    ],
)
def test_block_sizes_have_fitting_defaults(text: str, sizes: tuple[int, int, int]) -> None:
    assert parse_block_sizes(text) == BlockSizes(*sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say what to serve"),
        (("f",), "say where to listen"),
        (("f", "--listen", "host:http"), "'http' is not a port"),
        (("f", "--listen", "host:70000"), "a number from 0 to 65535"),
        (("f", "--listen", ""), "'' names no host: 127.0.0.1 is this machine alone, 0.0.0.0 every"),
        (("f", "--listen", ":10809"), "':10809' names no host"),
        (("f", "--listen", "[]:10809"), "'[]:10809' names no host"),
        (("f", "--listen", "10809"), "127.0.0.1:10809"),
        (("f", "--listen", "::1:10809"), "needs brackets, like [::1]:10809"),
        (("f", "--sokcet=s"), "perhaps --socket is meant"),
        (("f", "-r", "--socket=s"), "perhaps --read-only is meant"),
        (("f", "--port", "10809"), "perhaps --listen is meant"),
        (("f", "--xyzzy", "--socket=s"), "or try: python -m nbdserver disk.img --socket"),
        (("f", "g", "--name=x", "--socket=s"), "--name is for a single FILE"),
        (("y=f", "--name=x", "--socket=s"), "--name is for a single FILE"),
        (("a/f", "b/f", "--socket=s"), "two exports have one name"),
        (("f", "--name", "x" * 5000, "--socket=s"), "4096 bytes"),
        (("f", "--description", "x" * 5000, "--socket=s"), "4096 bytes"),
        (("f", "--block-size=0", "--socket=s"), "not one to three numbers"),
        (("f", "--block-size=1,2,3,4", "--socket=s"), "not one to three numbers"),
        (("f", "--limit=clients", "--socket=s"), "not NAME=VALUE"),
        (("f", "--limit=clients=0", "--socket=s"), "clients must be 1 to 65536"),
        (("f", "--limit=client=1", "--socket=s"), "there is no limit 'client'"),
    ],
)
def test_mistakes_are_refused_in_words_that_help(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    said = refused(capsys, *arguments)
    assert words in said
    what, why, next_step = said.splitlines()
    assert what == "nbdserver: the command line cannot be used"
    assert why.startswith("Why   ")
    assert next_step.startswith("Next  ")
    assert "--help" in next_step


def test_inherited_sockets_make_others_unnecessary() -> None:
    settings = parse_arguments(["f"], {"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    assert settings is not None
    assert (settings.sockets, settings.addresses) == ((), ())


def test_table_of_limits_is_printed_and_nothing_is_served(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse_arguments(["--limits"], NOWHERE) is None
    assert capsys.readouterr().out == limits.table() + "\n"


def test_help_teaches_by_examples_and_says_what_is_not_protected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"], NOWHERE)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for word in (
        "examples:",
        "nbdinfo",
        "nbd-client",
        "LISTEN_FDS",
        "nothing is encrypted",
        "SIGUSR1",
    ):
        assert word in shown


def test_nothing_is_encrypted_unless_asked_for() -> None:
    assert parsed("disk").encryption == Encryption(TlsMode.OFF, None, {})


def test_certificates_are_found_in_a_folder_or_named_one_by_one() -> None:
    folder = ("--tls-certificates=/c",)
    assert parsed("disk", "--tls=required", *folder).encryption == Encryption(
        TlsMode.REQUIRED, TlsServerFiles("/c/server-cert.pem", "/c/server-key.pem"), {}
    )
    encryption = parsed(
        "disk", "--tls=allowed", *folder, "--tls-ca=/other", "--tls-verify-clients"
    ).encryption
    assert encryption.files == TlsServerFiles("/c/server-cert.pem", "/c/server-key.pem", "/other")
    named = ("--tls-cert=/a", "--tls-key=/b")
    assert parsed("disk", "--tls=allowed", *named).encryption.files == TlsServerFiles("/a", "/b")


def test_clients_are_of_one_export_or_of_each() -> None:
    tls = ("--tls=required", "--tls-certificates=/c", "--tls-verify-clients")
    clients = ("--client=a=ann", "--client=bob")
    found = parsed("a=x", "b=y", *tls, *clients).encryption.clients
    assert found == {"a": ["ann", "bob"], "b": ["bob"]}
    assert parsed("x", *tls, "--client=ann").encryption.clients == {"": ["ann"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls=maybe",), "invalid choice"),
        (("--tls-verify-clients",), "need --tls allowed"),
        (("--tls-certificates=/c",), "need --tls allowed"),
        (("--client=ann",), "need --tls allowed"),
        (("--tls=required",), "needs --tls-certificates"),
        (("--tls=required", "--tls-cert=/a"), "--tls-cert and --tls-key"),
        (
            ("--tls=required", "--tls-cert=/a", "--tls-key=/b", "--tls-verify-clients"),
            "needs --tls-ca",
        ),
        (("--tls=required", "--tls-certificates=/c", "--client=ann"), "is nobody's"),
        (
            ("--tls=required", "--tls-certificates=/c", "--tls-verify-clients", "--client=x=ann"),
            "'x', which is not served",
        ),
    ],
)
def test_encryption_that_would_not_be_what_is_meant_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refused(capsys, "disk", "--socket=/s", *arguments)
