"""Reading the files: fragments, unreadable files, and that no content breaks the reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repl.config import load_config
from repl.errors import ConfigInvalid
from tests.test_config import NBD, NODE, PEER, VOLUME, load, write


def test_fragments_are_merged_in_name_order(tmp_path: Path) -> None:
    write(tmp_path / "conf.d", VOLUME.replace("r0", "r1"), "20-r1.toml")
    write(tmp_path / "conf.d", VOLUME.replace("r0", "r2"), "10-r2.toml")
    write(tmp_path / "conf.d", "not toml", ".hidden.toml")
    write(tmp_path / "conf.d", "not toml", "notes.txt")
    config = load(tmp_path, NODE + NBD + PEER + VOLUME)
    assert list(config.volumes) == ["r0", "r2", "r1"]


def test_problem_in_a_fragment_names_the_fragment(tmp_path: Path) -> None:
    fragment = write(tmp_path / "conf.d", "[volumes.r1]\nsiez = 1\n", "r1.toml")
    with pytest.raises(ConfigInvalid) as refusal:
        load(tmp_path, NODE + NBD + PEER + VOLUME)
    lines = refusal.value.why.split("\n")
    assert f"{fragment}: volumes.r1.siez: unknown key; did you mean 'size'?" in lines
    assert f'{fragment}: volumes.r1.size: required; add  size = "10GiB"' in lines


@pytest.mark.parametrize(
    ("fragment", "key"),
    [
        ('[volumes.r0]\nsize = "1GiB"\n', "volumes.r0.size"),
        ('[volumes.r0]\npeers = ["beta"]\n', "volumes.r0.peers"),
        ("volumes = 3\n", "volumes"),
        ('[node.name]\nx = "y"\n', "node.name"),
    ],
)
def test_key_given_twice_names_both_files(tmp_path: Path, fragment: str, key: str) -> None:
    main = write(tmp_path, NODE + NBD + PEER + VOLUME)
    part = write(tmp_path / "conf.d", fragment, "r0.toml")
    with pytest.raises(ConfigInvalid) as refusal:
        load_config(main)
    assert refusal.value.why == f"{part}: {key}: given twice; {main} has it too"


def test_broken_toml_is_named_for_every_file(tmp_path: Path) -> None:
    first = write(tmp_path / "conf.d", "= 3\n", "a.toml")
    second = tmp_path / "conf.d" / "b.toml"
    second.write_bytes(b"x = '\xff'\n")
    with pytest.raises(ConfigInvalid) as refusal:
        load(tmp_path, NODE)
    lines = refusal.value.why.split("\n")
    assert lines[0].startswith(f"{first}: not valid TOML: ")
    assert lines[1].startswith(f"{second}: not valid TOML: ")


def test_unreadable_files_have_their_own_code(tmp_path: Path) -> None:
    huge = tmp_path / "disk.img"
    huge.touch()
    os.truncate(huge, 1 << 40)
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "x\0y"):
        with pytest.raises(ConfigInvalid) as refusal:
            load_config(path)
        assert refusal.value.code == "CONFIG_UNREADABLE"
        assert refusal.value.why and refusal.value.next_step
    with pytest.raises(ConfigInvalid, match="Cannot use") as refusal:
        load_config(huge)
    assert "does not look like a configuration" in refusal.value.why


VALUES = st.recursive(
    st.sampled_from(['""', '"beta"', '"10GiB"', '"h:1"', "0", "-1", "1.5", "nan", "true", "[]",
                     "1979-05-27", "99999999999999999999"]),
    lambda inner: st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]")
    | st.dictionaries(st.sampled_from(["int", "str", "size", "r0", "x"]), inner, max_size=2).map(
        lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
    ),
    max_leaves=4,
)  # fmt: skip
KEYS = st.sampled_from(
    ["node", "node.name", "node.listen", "node.insecure", "nbd", "nbd.socket", "nbd.listen", "tls",
     "nbd.when_secondary", "peers", "peers.beta", "peers.beta.address", "peers.beta.addresses",
     "volumes", "volumes.r0", "volumes.r0.size", "volumes.r0.backing", "volumes.r0.peers",
     "volumes.int.size", "timeouts", "timeouts.peer_timeout_s", "odd", "volumes.r0.odd"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_file_is_loaded_or_refused_with_lines(tmp_path: Path, keys: dict[str, str]) -> None:
    file = write(tmp_path, "".join(f"{key} = {value}\n" for key, value in keys.items()))
    lines: list[str] = []
    config = None
    try:
        config = load_config(file)
    except ConfigInvalid as refusal:
        lines = refusal.why.split("\n")
    assert (config is None) == bool(lines)
    assert all(line.startswith(f"{file}: ") for line in lines)
