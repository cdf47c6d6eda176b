"""The command line of `python -m nbdserver`: what may be said, and what it means.

Pure but for what happens on a mistake: the process ends with status 2 and words that help.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nbdserver import limits
from nbdserver.admission import TlsMode
from nbdserver.limits import LimitInvalid, Limits
from nbdserver.mistakes import HelpfulParser
from nbdserver.protocol import NBD_DEFAULT_PORT, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX
from nbdserver.tls import TlsServerFiles

DESCRIPTION: Final = """\
Serve files and block devices over NBD, the network block device protocol. Each FILE becomes one
export, which clients attach by its name. A single FILE is the default export, with the empty name,
unless it is given one; of several, each is called by its NAME or else by the file's base name.
"""
EPILOG: Final = """\
examples:
  truncate -s 1G disk.img
  python -m nbdserver disk.img --socket /tmp/nbd.sock
      a file on a Unix socket; in another terminal, one of
      nbdinfo 'nbd+unix:///?socket=/tmp/nbd.sock'
      qemu-img info 'nbd+unix:///?socket=/tmp/nbd.sock'
  python -m nbdserver data=/dev/vg0/data --ro iso=debian.iso --listen 127.0.0.1
      two exports over TCP: nbd://127.0.0.1/data and, never written, nbd://127.0.0.1/iso
  nbd-client 127.0.0.1 /dev/nbd0 -N data -C 4
      the first of them as a block device, over four connections
  systemd-socket-activate -l 10809 python -m nbdserver disk.img
      listening sockets may be inherited instead (LISTEN_FDS)
  python -m nbdserver disk.img --listen 0.0.0.0 --tls required --tls-certificates /etc/nbd \\
                      --tls-verify-clients --client backup
      TLS 1.3 only, and only for clients with a certificate of backup:
      nbdinfo 'nbds://server.example/?tls-certificates=/home/backup/certificates'

Without --tls nothing is encrypted, and whoever reaches a socket can use what is exported there: use
--listen on loopback or on a network that you trust. A Unix socket is open to the user and the group
that started this; clients may begin TLS there, but are never made to.

signals: SIGTERM and SIGINT answer what was received and end; SIGUSR1 prints counters.
exit status: 0 stopped, 2 usage, 8 a file or an address cannot be used, 9 permission.
"""

#: In the folder of --tls-certificates: of this server, its key, and of the clients' authority.
CERTIFICATE_FILES: Final = ("server-cert.pem", "server-key.pem", "ca-cert.pem")


@dataclass(frozen=True, slots=True)
class Served:
    """One file and how it is to be exported."""

    name: str
    path: Path
    read_only: bool


@dataclass(frozen=True, slots=True)
class Encryption:
    """What is said of TLS. `clients` are, by an export's name, the certificates that it is for."""

    mode: TlsMode = TlsMode.OFF
    files: TlsServerFiles | None = None
    clients: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What clients are told, and held to."""

    minimum_bytes: int = 1
    preferred_bytes: int = 4096
    maximum_bytes: int = PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    files: tuple[Served, ...]
    sockets: tuple[Path, ...]
    addresses: tuple[tuple[str, int], ...]
    description: str
    block_sizes: BlockSizes
    limits: Limits
    encryption: Encryption
    verbose: bool


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT or HOST as (host, port). Raises ArgumentTypeError."""
    if text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text} is no host; its port {text}, for this machine alone, is 127.0.0.1:{text}"
        )
    if text.count(":") > 1 and not text.startswith("["):
        raise argparse.ArgumentTypeError(
            f"{text!r}: an IPv6 address needs brackets, like [::1]:{NBD_DEFAULT_PORT}"
        )
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(NBD_DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise argparse.ArgumentTypeError(
            f"{text!r} names no host: 127.0.0.1 is this machine alone, 0.0.0.0 every IPv4 address "
            "of it, [::] every IPv6 address"
        )
    if not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{port!r} is not a port, a number from 0 to 65535")
    return host, int(port)


def parse_block_sizes(text: str) -> BlockSizes:
    """MINIMUM[,PREFERRED[,MAXIMUM]] in bytes. Raises ArgumentTypeError with a sentence."""
    parts = text.split(",")
    if len(parts) > 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one to three numbers of bytes, like 512,4096,1048576"
        )
    numbers = [int(part) for part in parts]
    preferred = max(4096, numbers[0])
    return BlockSizes(*numbers, *(preferred, PAYLOAD_BYTES_MAX)[len(numbers) - 1 :])


def parse_file(text: str) -> tuple[str | None, Path]:
    """[NAME=]FILE as (name, path). What has a slash before "=" is no name: ./a=b is a file."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return None, Path(text)
    return name, Path(path)


def parse_limit(text: str) -> tuple[str, float]:
    """NAME=VALUE. Raises ArgumentTypeError with the sentence to show."""
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise LimitInvalid(f"{text!r} is not NAME=VALUE")
        return name, limits.parse(name, value)
    except LimitInvalid as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = HelpfulParser(
        prog="python -m nbdserver",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.example = "disk.img --socket /tmp/nbd.sock"
    parser.add_argument("files", metavar="[NAME=]FILE", nargs="*", type=parse_file)
    what = parser.add_argument_group("what is served")
    what.add_argument(
        "--ro", metavar="[NAME=]FILE", action="append", default=[], type=parse_file,
        help="one more file, which no client may write; may be repeated",
    )  # fmt: skip
    what.add_argument("--read-only", action="store_true", help="no client may write any file")
    what.add_argument("--name", help="the name of a single FILE, in place of NAME=")
    what.add_argument("--description", default="", help="a text about the exports, for people")
    what.add_argument(
        "--block-size", metavar="MIN[,PREF[,MAX]]", type=parse_block_sizes, default=BlockSizes(),
        help="block sizes in bytes: other requests are refused; default 1,4096,33554432",
    )  # fmt: skip
    where = parser.add_argument_group("where clients connect")
    where.add_argument(
        "--socket", metavar="PATH", action="append", default=[], type=Path,
        help="a Unix socket; may be repeated",
    )  # fmt: skip
    where.add_argument(
        "--listen", metavar="HOST:PORT", action="append", default=[], type=parse_address,
        help=f"TCP; port 0 chooses one, the default is {NBD_DEFAULT_PORT}; may be repeated",
    )  # fmt: skip
    _add_encryption(parser)
    bounds = parser.add_argument_group("what clients may have")
    bounds.add_argument(
        "--limit", metavar="NAME=VALUE", action="append", default=[], type=parse_limit,
        help="change a limit, like clients=16 or total_bytes=64MiB; may be repeated",
    )  # fmt: skip
    bounds.add_argument(
        "--limits", action="store_true", help="print all limits with their defaults, and end"
    )
    parser.add_argument("--verbose", action="store_true", help="log every client")
    return parser


def _add_encryption(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encryption (TLS 1.3) and who may use what")
    group.add_argument(
        "--tls", choices=[mode.value for mode in TlsMode], default=TlsMode.OFF.value,
        help="whether clients may begin TLS, or must if they come by TCP; default off",
    )  # fmt: skip
    group.add_argument(
        "--tls-certificates", metavar="DIR", type=Path,
        help=f"a folder with {', '.join(CERTIFICATE_FILES)}, as qemu and nbdkit have it",
    )  # fmt: skip
    for name, text in (
        ("cert", "this server's certificate"),
        ("key", "its key"),
        ("ca", "the certificate of the authority that clients' certificates are of"),
    ):
        group.add_argument(f"--tls-{name}", metavar="FILE", type=Path, help=f"{text} (PEM)")
    group.add_argument(
        "--tls-verify-clients", action="store_true",
        help="every client that begins TLS must show a certificate of the authority",
    )  # fmt: skip
    group.add_argument(
        "--client", metavar="[EXPORT=]NAME", action="append", default=[], type=parse_client,
        help="an export, or each, is only for clients with a certificate of NAME (an alternative "
        "name, or the common name if there is none); may be repeated",
    )  # fmt: skip


def parse_client(text: str) -> tuple[str | None, str]:
    """[EXPORT=]NAME as (export, name)."""
    export, equals, name = text.rpartition("=")
    return (export if equals else None), name


def _encryption(
    parser: argparse.ArgumentParser, parsed: argparse.Namespace, names: Sequence[str]
) -> Encryption:
    """What is asked for. Exits with 2 on mistakes."""
    mode = TlsMode(parsed.tls)
    given = [parsed.tls_cert, parsed.tls_key, parsed.tls_ca]
    if mode is TlsMode.OFF:
        if any(given) or parsed.tls_certificates or parsed.tls_verify_clients or parsed.client:
            parser.error("certificates and clients' names need --tls allowed or --tls required")
        return Encryption()
    if parsed.tls_certificates is not None:
        found = [parsed.tls_certificates / name for name in CERTIFICATE_FILES]
        given = [each or default for each, default in zip(given, found, strict=True)]
    certificate, key, authority = given
    if certificate is None or key is None:
        parser.error("--tls needs --tls-certificates DIR, or --tls-cert and --tls-key")
    if parsed.tls_verify_clients and authority is None:
        parser.error("--tls-verify-clients needs --tls-ca or --tls-certificates")
    if parsed.client and not parsed.tls_verify_clients:
        parser.error("--client needs --tls-verify-clients: a name that is not verified is nobody's")
    asked = str(authority) if parsed.tls_verify_clients else ""
    files = TlsServerFiles(str(certificate), str(key), asked)
    clients: dict[str, list[str]] = {}
    for export, name in parsed.client:
        if export is not None and export not in names:
            parser.error(f"--client is for the export {export!r}, which is not served")
        for each in names if export is None else [export]:
            clients.setdefault(each, []).append(name)
    return Encryption(mode, files, clients)


def parse_arguments(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Settings | None:
    """What is asked for; None if everything asked for has been printed. Exits with 2 on mistakes.

    `environment` is looked at for sockets that are inherited, which make others unnecessary.
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.limits:
        print(limits.table())
        return None
    given = [(name, path, parsed.read_only) for name, path in parsed.files]
    given += [(name, path, True) for name, path in parsed.ro]
    if not given:
        parser.error("it does not say what to serve: [NAME=]FILE")
    if parsed.name is not None:
        if len(given) > 1 or given[0][0] is not None:
            parser.error("--name is for a single FILE; otherwise write NAME=FILE")
        given = [(parsed.name, *given[0][1:])]
    if not parsed.socket and not parsed.listen and "LISTEN_FDS" not in environment:
        parser.error("it does not say where to listen: --socket PATH, --listen HOST:PORT, or both")
    unnamed = "" if len(given) == 1 else None
    files = []
    for name, path, read_only in given:
        if name is None:
            name = path.name if unnamed is None else unnamed
        files.append(Served(name, path, read_only))
    names = [each.name for each in files]
    if len(set(names)) < len(names):
        parser.error("two exports have one name; write NAME=FILE")
    for text in (parsed.description, *names):
        if any("\udc80" <= each <= "\udcff" for each in text):
            parser.error(f"names and --description are UTF-8, which {text!a} is not")
        if len(text.encode(errors="surrogateescape")) > STRING_BYTES_MAX:
            parser.error(f"--name and --description have up to {STRING_BYTES_MAX} bytes")
    try:
        chosen = limits.make(dict(parsed.limit))
    except LimitInvalid as error:
        parser.error(str(error))
    return Settings(
        tuple(files),
        tuple(parsed.socket),
        tuple(parsed.listen),
        parsed.description,
        parsed.block_size,
        chosen,
        _encryption(parser, parsed, names),
        parsed.verbose,
    )
