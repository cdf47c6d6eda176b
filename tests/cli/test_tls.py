"""`replctl tls`: certificates that fit, and nothing that exists is overwritten."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from repl.cli.main import main
from repl.tls_files import TlsFiles, problem_of


def files_of(folder: Path, node: str) -> TlsFiles:
    return TlsFiles(
        str(folder / f"{node}.crt"), str(folder / f"{node}.key"), str(folder / "ca.crt")
    )


def test_init_makes_material_that_fits_and_keys_that_nobody_else_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pki"
    assert main(["tls", "init", str(folder), "alpha", "beta"]) == 0
    printed = capsys.readouterr().out.splitlines()
    names = ["ca.crt", "ca.key", "alpha.crt", "alpha.key", "beta.crt", "beta.key"]
    assert printed == [str(folder / name) for name in names]
    for node in ("alpha", "beta"):
        assert problem_of(files_of(folder, node)) is None
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_further_node_is_signed_by_the_same_authority(tmp_path: Path) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    authority = (tmp_path / "ca.crt").read_bytes()
    assert main(["tls", "init", str(tmp_path), "beta"]) == 0
    assert (tmp_path / "ca.crt").read_bytes() == authority
    assert problem_of(files_of(tmp_path, "beta")) is None


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(["--json", "tls", "init", str(tmp_path), "gamma", "alpha"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "TLS_FILE_EXISTS"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("node", ["", "a/b", "a b", "../x", "a\tb", "ü"])
def test_names_that_no_node_can_have_are_refused(tmp_path: Path, node: str) -> None:
    assert main(["tls", "init", str(tmp_path / "pki"), node]) == 2
    assert not (tmp_path / "pki").exists()


def test_authority_without_its_key_is_refused(tmp_path: Path) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    (tmp_path / "ca.key").unlink()
    assert main(["tls", "init", str(tmp_path), "beta"]) == 2
    (tmp_path / "ca.key").write_bytes((tmp_path / "alpha.key").read_bytes())
    assert main(["tls", "init", str(tmp_path), "beta"]) == 2
    assert not (tmp_path / "beta.crt").exists()


def test_show_prints_whose_it_is_and_its_fingerprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha", "--days", "30"]) == 0
    capsys.readouterr()
    assert main(["--json", "tls", "show", str(tmp_path / "alpha.crt")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["names"] == ["alpha"]
    assert len(bytes.fromhex(shown["fingerprint"])) == 32
    assert main(["tls", "show", str(tmp_path / "alpha.key")]) == 2
    assert main(["tls", "show", str(tmp_path / "absent.crt")]) == 2


def test_client_gets_a_folder_that_its_programs_take_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    capsys.readouterr()
    assert main(["tls", "client", str(tmp_path), "backup", "--days", "30"]) == 0
    made = capsys.readouterr().out.splitlines()
    names = ["ca-cert.pem", "client-cert.pem", "client-key.pem"]
    assert made == [str(tmp_path / "backup" / name) for name in names]
    folder = tmp_path / "backup"
    assert (folder / "ca-cert.pem").read_bytes() == (tmp_path / "ca.crt").read_bytes()
    assert stat.S_IMODE((folder / "client-key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = TlsFiles(made[1], made[2], made[0])
    assert problem_of(files) is None
    assert main(["--json", "tls", "show", made[1]]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["backup"]


def test_client_overwrites_nothing_and_is_not_called_as_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    assert main(["tls", "client", str(tmp_path), "backup"]) == 0
    before = (tmp_path / "backup" / "client-key.pem").read_bytes()
    for name in ("backup", "alpha"):
        capsys.readouterr()
        assert main(["--json", "tls", "client", str(tmp_path), "new", name]) == 5
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "TLS_FILE_EXISTS"
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "backup" / "client-key.pem").read_bytes() == before


def test_client_needs_an_authority_and_a_name(tmp_path: Path) -> None:
    assert main(["tls", "client", str(tmp_path), "backup"]) == 2
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    assert main(["tls", "client", str(tmp_path), "../x"]) == 2
    assert not (tmp_path / "backup").exists()


def test_hosts_by_which_clients_reach_a_node_are_in_its_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = ("--host", "alpha=10.0.0.1", "--host", "alpha=a.example", "--host", "beta=fd00::2")
    assert main(["tls", "init", str(tmp_path), "alpha", "beta", *hosts]) == 0
    for node, names in (
        ("alpha", ["alpha", "a.example", "10.0.0.1"]),
        ("beta", ["beta", "fd00::2"]),
    ):
        capsys.readouterr()
        assert main(["--json", "tls", "show", str(tmp_path / f"{node}.crt")]) == 0
        assert json.loads(capsys.readouterr().out)["names"] == names


@pytest.mark.parametrize("host", ["gamma=10.0.0.1", "10.0.0.1", "alpha=", "alpha=beta", "alpha=ü"])
def test_host_of_no_node_or_that_is_another_node_is_refused(tmp_path: Path, host: str) -> None:
    assert main(["tls", "init", str(tmp_path / "pki"), "alpha", "beta", "--host", host]) == 2
    assert not (tmp_path / "pki").exists()
