"""The example configurations are valid, fit together, and the commands they name exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from nbdserver.limits import Limits
from repl.cli.main import cli, main
from repl.config import Config, TimeoutSettings, load_config

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


def example(name: str) -> Config:
    return load_config(EXAMPLES / f"{name}.toml")


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_config_check_accepts_the_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(EXAMPLES / f"{name}.toml")]) == 0
    assert f"is valid: node {name}; volumes r0;" in capsys.readouterr().out


def test_examples_name_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    alpha, beta = example("alpha"), example("beta")
    readme = (EXAMPLES / "README.md").read_text()
    for mine, other in ((alpha, beta), (beta, alpha)):
        assert mine.volumes["r0"].peers == (other.node.name,)
        [address] = mine.peers[other.node.name].addresses
        assert mine.node.listen is not None and other.node.listen is not None
        assert address.port == other.node.listen.port
        assert other.node.listen.host in (address.host, "0.0.0.0")
        assert f"`{other.node.name}` ({address.host})" in readme
        assert (
            f'"{other.node.name}" ({address.host})'
            in (EXAMPLES / f"{other.node.name}.toml").read_text()
        )
    assert alpha.peers["beta"].addresses != beta.peers["alpha"].addresses


def test_examples_agree_on_the_volume() -> None:
    alpha, beta = example("alpha"), example("beta")
    assert alpha.volumes.keys() == beta.volumes.keys()
    assert alpha.volumes["r0"].size_bytes == beta.volumes["r0"].size_bytes


def test_commented_timeouts_are_the_defaults(tmp_path: Path) -> None:
    text = (EXAMPLES / "alpha.toml").read_text()
    commented = re.findall(r"^# (\[timeouts\]|\w+_s = [0-9.]+)", text, re.MULTILINE)
    assert len(commented) == 1 + len(TimeoutSettings.__dataclass_fields__)
    (tmp_path / "alpha.toml").write_text(
        re.sub(r"^# (?=\[timeouts\]|\w+_s = )", "", text, flags=re.M)
    )
    assert load_config(tmp_path / "alpha.toml").timeouts == TimeoutSettings()


def test_commented_limits_are_the_defaults(tmp_path: Path) -> None:
    text = (EXAMPLES / "alpha.toml").read_text()
    block = re.search(r"^# \[nbd\.limits\].*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    uncommented = re.sub(r"^# ", "", block[0], flags=re.MULTILINE)
    (tmp_path / "alpha.toml").write_text(text.replace(block[0], uncommented))
    assert len(tomllib.loads(uncommented)["nbd"]["limits"]) > 2
    assert load_config(tmp_path / "alpha.toml").nbd.limits == Limits()


def test_insecure_is_explained_where_it_is_set() -> None:
    for name in ("alpha.toml", "beta.toml", "README.md"):
        text = (EXAMPLES / name).read_text()
        assert "insecure = true" in text
        assert re.search(r"clear text|[Pp]laintext", text)


def test_every_command_that_the_examples_name_exists() -> None:
    text = "".join(file.read_text() for file in sorted(EXAMPLES.iterdir()))
    named = re.findall(r"(?:`|:  |    )replctl ((?:[a-z][a-z-]+ ?)+)", text)
    assert len(named) > 5
    for words in named:
        group: click.Command = cli
        for word in words.split():
            if not isinstance(group, click.Group):
                break
            found = group.commands.get(word)
            assert found is not None, words
            group = found
