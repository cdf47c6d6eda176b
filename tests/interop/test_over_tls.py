"""One of each kind of client over TLS, with its certificate, and what others get.

All the other tests of this folder run over TLS as well, marked slow.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests import libnbd
from tests.certificates import make_certificates, make_client
from tests.daemon import MIB
from tests.interop.conftest import Connect, Tool
from tests.interop.targets import Target, qemu_name, qemu_objects, uri_with
from tests.interop.test_tools import image, run_fio

__all__ = ["image"]


def test_libnbd_reads_what_it_wrote(tls_export: Target, connect: Connect) -> None:
    data = random.Random(31).randbytes(3 * MIB)
    for uri in (tls_export.uri(), tls_export.tcp_uri()):
        handle = connect(uri)
        assert handle.get_tls_negotiated()
        assert handle.get_structured_replies_negotiated()
        handle.pwrite(data, 12345)
        handle.flush()
        assert bytes(handle.pread(len(data), 12345)) == data
        data = data[::-1]


def test_nbdinfo_and_nbdcopy_work_over_tls(
    tls_export: Target, run_tool: Tool, image: Path, tmp_path: Path
) -> None:
    (info,) = json.loads(run_tool("nbdinfo", "--json", tls_export.tcp_uri()))["exports"]
    assert info["export-name"] == "r0"
    command = ("nbdcopy", "--requests=64", "--connections=4", "--flush")
    run_tool(*command, image, tls_export.tcp_uri())
    assert tls_export.backing().read_bytes() == image.read_bytes()
    back = tmp_path / "back.img"
    run_tool("nbdcopy", tls_export.uri(), back)
    assert back.read_bytes() == image.read_bytes()


def test_qemu_img_works_with_its_own_credentials(
    tls_export: Target, run_tool: Tool, image: Path
) -> None:
    tls = qemu_objects(tls_export)
    raw = ("-f", "raw", "-O", "raw")
    run_tool("qemu-img", "convert", *tls, "-n", *raw, image, qemu_name(tls_export, "tcp"))
    both = ("-f", "raw", "-F", "raw", image, qemu_name(tls_export, "unix"))
    assert "identical" in run_tool("qemu-img", "compare", *tls, *both)


def test_fio_verifies_what_it_wrote_over_tls(tls_export: Target, run_tool: Tool) -> None:
    options = ("--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=4m", "--fsync=256")
    verify = ("--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
    assert run_fio(run_tool, tls_export, *options, *verify)["error"] == 0


def test_server_that_requires_tls_is_no_use_without(tls_export: Target, connect: Connect) -> None:
    with pytest.raises(libnbd.load().Error):
        connect(f"nbd://127.0.0.1:{tls_export.port}/r0")


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_client_of_another_authority_or_of_none_is_refused(
    tls_export: Target, connect: Connect, certificates: Path, tmp_path: Path, who: str
) -> None:
    if who == "stranger":
        others = make_certificates(tmp_path / "others", "alpha")
        client = make_client(others, "ann")
        # It trusts the server, so that only the server has a reason to refuse.
        (client / "ca-cert.pem").write_bytes((certificates / "ca.crt").read_bytes())
    else:
        client = tmp_path / "nobody"
        client.mkdir()
        (client / "ca-cert.pem").write_bytes((certificates / "ca.crt").read_bytes())
    with pytest.raises(libnbd.load().Error):
        connect(uri_with(client, f"nbd://127.0.0.1:{tls_export.port}/r0"))
    assert connect(tls_export.tcp_uri()).get_tls_negotiated()


def test_client_verifies_the_server(
    tls_export: Target, connect: Connect, certificates: Path, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others", "alpha")
    with pytest.raises(libnbd.load().Error, match="certificate"):
        connect(uri_with(make_client(others, "ann"), f"nbd://127.0.0.1:{tls_export.port}/r0"))
