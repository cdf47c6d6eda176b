"""What is measured over TLS has its certificates where it looks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench.certificates
from bench.certificates import server_certificates, unverified
from bench.processes import ContenderBroke
from nbdserver.command_line import CERTIFICATE_FILES
from tests.certificates import server_folder


def test_a_measured_server_has_the_folder_that_tested_ones_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def noted(folder: Path, node: str) -> Path:
        made.append(server_folder(folder, node))
        return made[-1]

    monkeypatch.setattr(bench.certificates, "server_folder", noted)
    found = server_certificates(tmp_path / "tls")
    assert [found] == made
    assert {path.name for path in found.iterdir()} == set(CERTIFICATE_FILES)


def test_certificates_that_cannot_be_made_break_the_contender(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ContenderBroke, match="file"):
        server_certificates(tmp_path / "file" / "tls")


def test_a_client_that_knows_no_authority_uses_the_same_place() -> None:
    found = unverified("nbd+unix:///?socket=/run/nbd.sock")
    assert found == "nbds+unix:///?socket=/run/nbd.sock&tls-verify-peer=false"
