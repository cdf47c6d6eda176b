"""Every rule of the configuration: what is accepted, and the exact line each mistake gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repl.addresses import Address, parse_address
from repl.cli.main import main
from repl.config import Config, TimeoutSettings, load_config
from repl.errors import ConfigInvalid

NODE = """
[node]
name = "alpha"
state_dir = "/var/lib/repl"
control = "/run/repl/repld.sock"
listen = "127.0.0.1:7790"
"""
NBD = """
[nbd]
socket = "/run/repl/nbd.sock"
"""
PEER = """
[peers.beta]
address = "127.0.0.2:7790"
"""
VOLUME = """
[volumes.r0]
size = "10GiB"
backing = "/srv/repl/r0.img"
peers = ["beta"]
"""


def write(folder: Path, text: str, name: str = "repld.toml") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, text: str) -> Config:
    return load_config(write(folder, text))


def problems(folder: Path, text: str) -> list[str]:
    """Return the lines of `why` without the file's name, which every line must begin with."""
    file = write(folder, text)
    with pytest.raises(ConfigInvalid) as refusal:
        load_config(file)
    assert refusal.value.code == "CONFIG_INVALID"
    assert refusal.value.next_step
    lines = refusal.value.why.split("\n")
    assert all(line.startswith(f"{file}: ") for line in lines), lines
    return [line.removeprefix(f"{file}: ") for line in lines]


def test_the_whole_configuration_becomes_settings(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
[node]
name = "alpha"
state_dir = "/var/lib/repl"
control = "/run/repl/repld.sock"
listen = "0.0.0.0:7790"
metrics = "127.0.0.1:9790"
insecure = true
[nbd]
socket = "/run/repl/nbd.sock"
listen = "127.0.0.1:10809"
when_secondary = "hold"
[peers.beta]
addresses = ["10.0.0.2:7790", "[fd00::2]:7790"]
[volumes.r0]
size = "10GiB"
backing = "/srv/repl/r0.img"
peers = ["beta"]
[volumes.scratch]
size = 1048576
backing = "/srv/repl/scratch.img"
peers = []
[timeouts]
peer_timeout_s = 3
""",
    )
    assert config.node.name == "alpha"
    assert config.node.listen == Address("0.0.0.0", 7790)
    assert config.node.metrics == Address("127.0.0.1", 9790)
    assert config.node.insecure is True
    assert config.nbd.when_secondary == "hold"
    assert config.nbd.listen == Address("127.0.0.1", 10809)
    beta = config.peers["beta"]
    assert [str(address) for address in beta.addresses] == ["10.0.0.2:7790", "[fd00::2]:7790"]
    assert config.volumes["r0"].size_bytes == 10 << 30
    assert config.volumes["r0"].peers == ("beta",)
    assert config.volumes["scratch"].peers == ()
    assert config.timeouts == TimeoutSettings(peer_timeout_s=3.0)


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    config = load(tmp_path, '[node]\nname = "alpha"\n' + NBD)
    assert (config.node.state_dir, config.node.control) == (
        "/var/lib/repl",
        "/run/repl/repld.sock",
    )
    assert config.node.insecure is False
    assert config.nbd.when_secondary == "refuse"
    assert config.timeouts == TimeoutSettings(5.0, 1.0, 2.0, 1.0, 10.0, 2.0)


def test_what_holds_a_volume_back_is_read(tmp_path: Path) -> None:
    options = 'alone = "ask"\nresync_rate_limit = "100MB/s"\n'
    volume = load(tmp_path, NODE + NBD + PEER + VOLUME + options).volumes["r0"]
    assert (volume.alone, volume.resync_rate_bytes_max) == ("ask", 100_000_000)
    volume = load(tmp_path, NODE + NBD + PEER + VOLUME).volumes["r0"]
    assert (volume.alone, volume.resync_rate_bytes_max) == ("continue", 0)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('alone = "perhaps"', "volumes.r0.alone: must be 'continue' or 'ask', not 'perhaps'"),
        ("resync_rate_limit = 5", "volumes.r0.resync_rate_limit: must be text in quotes, not 5"),
        ('resync_rate_limit = "5MB"', "volumes.r0.resync_rate_limit: '5MB' is not a rate; "),
        ('resync_rate_limit = "0B/s"', "volumes.r0.resync_rate_limit: must be 1 to 2**60 bytes"),
        ('resync_rate_limit = "2EiB/s"', "volumes.r0.resync_rate_limit: must be 1 to 2**60 "),
    ],
)
def test_odd_orders_for_a_volume_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    [problem] = problems(tmp_path, NODE + NBD + PEER + VOLUME + line)
    assert problem.startswith(sentence)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, NODE + NBD + PEER + VOLUME)
    with pytest.raises(AttributeError):
        config.node.name = "beta"  # type: ignore[misc]


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
[node]
name = "al pha"
listen = 7790
[nbd]
[peers.beta]
address = "10.0.0.2"
[volumes.r0]
siez = "10GiB"
backing = ""
peers = ["gamma"]
[volums.r1]
""",
    )
    assert found == [
        "node.listen: must be text in quotes, not 7790",
        'volumes.r0.size: required; add  size = "10GiB"',
        "volumes.r0.siez: unknown key; did you mean 'size'?",
        "volums: unknown key; did you mean 'volumes'?",
        "node.name: the name 'al pha' is not usable; a name is 1 to 63 letters, digits, '.', '_' "
        "or '-', beginning with a letter or digit",
        'nbd: needs socket = "/run/repl/nbd.sock", or listen, or both',
        "peers.beta.address: '10.0.0.2' is not an address; write it like \"10.0.0.2:7790\" or "
        '"[fd00::2]:7790"',
        "volumes.r0.backing: must be a path, not empty and without NUL",
        "volumes.r0.peers: names 'gamma', but there is no [peers.gamma] table",
    ]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("adress", "address"), ("backng", "backing"), ("xyzzy", None)],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str | None) -> None:
    table = "peers.beta" if nearest == "address" else "volumes.r0"
    text = NODE + NBD + PEER + VOLUME
    text = text.replace(f"[{table}]", f"[{table}]\n{key} = 1")
    hint = f"; did you mean '{nearest}'?" if nearest else ""
    assert problems(tmp_path, text) == [f"{table}.{key}: unknown key{hint}"]


def test_odd_keys_are_quoted_so_that_no_control_character_is_printed(tmp_path: Path) -> None:
    found = problems(tmp_path, NODE + NBD + '"a\\u001b[31m b" = 1\n')
    assert found == ['nbd."a\\x1b[31m b": unknown key']


@pytest.mark.parametrize("key", ["size", "backing", "peers"])
def test_volume_keys_are_required(tmp_path: Path, key: str) -> None:
    kept = [line for line in VOLUME.splitlines() if not line.startswith(key)]
    [line] = problems(tmp_path, NODE + NBD + PEER + "\n".join(kept))
    assert line.startswith(f"volumes.r0.{key}: required; add  {key} = ")


def test_node_and_nbd_are_required(tmp_path: Path) -> None:
    assert problems(tmp_path, "") == [
        "node: required; add  a [node] table",
        "nbd: required; add  a [nbd] table with socket or listen",
    ]


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("a", True),
        ("9.x_-", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("-a", False),
        (".", False),
        ("a/b", False),
        ("a b", False),
        ("", False),
        ("ä", False),
        ("a\\n", False),
    ],
)
def test_names_of_nodes_peers_and_volumes(tmp_path: Path, name: str, usable: bool) -> None:
    text = (NODE + NBD + PEER + VOLUME).replace('["beta"]', "[]")
    for shown in ("volumes.r0", "peers.beta"):
        table = shown.split(".")[0]
        named = text.replace(f"[{shown}]", f'[{table}."{name}"]')
        if usable:
            assert load(tmp_path, named)
        else:
            assert all("is not usable" in line for line in problems(tmp_path, named))
    named = text.replace('name = "alpha"', f'name = "{name}"')
    if usable:
        assert load(tmp_path, named).node.name == name
    else:
        assert "is not usable" in problems(tmp_path, named)[0]


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("1048575", "must be 1MiB to 2**63-1 bytes, not 1048575"),
        ("-4096", "must be 1MiB to 2**63-1 bytes, not -4096"),
        (str(2**63), f"must be 1MiB to 2**63-1 bytes, not {2**63}"),
        ("1048577", "1048577 is not a multiple of 4096; near it are 1048576 and 1052672"),
        ('"1.00001MiB"', "'1.00001MiB' is not a whole number of bytes"),
        ('"10G"', "'10G' has the unknown unit 'G'; did you mean GB or GiB?"),
        ("1.5", 'must be text like "10GiB" or a whole number of bytes'),
        ("true", 'must be text like "10GiB" or a whole number of bytes'),
        ("{int = 3}", 'must be text like "10GiB" or a whole number of bytes'),
    ],
)
def test_sizes_that_no_volume_can_have(tmp_path: Path, size: str, sentence: str) -> None:
    text = NODE + NBD + PEER + VOLUME.replace('"10GiB"', size)
    assert problems(tmp_path, text) == [f"volumes.r0.size: {sentence}"]


@pytest.mark.parametrize("size_bytes", [1 << 20, 2**63 - 4096])
def test_smallest_and_largest_sizes_are_accepted(tmp_path: Path, size_bytes: int) -> None:
    text = NODE + NBD + PEER + VOLUME.replace('"10GiB"', str(size_bytes))
    assert load(tmp_path, text).volumes["r0"].size_bytes == size_bytes


def test_second_peer_of_a_volume_names_the_limit(tmp_path: Path) -> None:
    text = NODE + NBD + PEER + PEER.replace("beta", "gamma").replace(".2:", ".3:")
    assert problems(tmp_path, text + VOLUME.replace('["beta"]', '["beta", "gamma"]')) == [
        "volumes.r0.peers: names 2 peers; this release supports at most 1 peer per volume"
    ]


def test_peer_named_as_this_node_is_refused(tmp_path: Path) -> None:
    text = NODE + NBD + PEER.replace("beta", "alpha") + VOLUME.replace("beta", "alpha")
    assert problems(tmp_path, text) == [
        "peers.alpha: is this node's own name; a node is not its own peer"
    ]


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:7790", "127.0.0.1:7790"),
        ("127.0.0.1:7790", "localhost:7790"),
        ("[::1]:7790", "[0:0::1]:7790"),
        ("0.0.0.0:7790", "127.0.0.1:7790"),
        ("0.0.0.0:7790", "0.0.0.0:7790"),
    ],
)
def test_peer_at_this_nodes_own_address_is_refused(
    tmp_path: Path, listen: str, address: str
) -> None:
    text = NODE.replace("127.0.0.1:7790", listen) + "insecure = true\n" + NBD
    text += PEER.replace("127.0.0.2:7790", address) + VOLUME
    [line] = problems(tmp_path, text)
    assert line.startswith("peers.beta: ")
    assert line.endswith(f"is this node's own listen address {listen}")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", 'peers.beta: needs  address = "10.0.0.2:7790"'),
        (
            'address = "127.0.0.2:1"\naddresses = ["127.0.0.3:1"]',
            "peers.beta: has both address and addresses; keep one of them",
        ),
        ("addresses = []", "peers.beta.addresses: must hold 1 to 4 addresses, not 0"),
        (
            "addresses = [3]",
            "peers.beta.addresses: must be a list that holds only text in quotes, not [3]",
        ),
    ],
)
def test_peer_needs_exactly_one_way_to_name_addresses(
    tmp_path: Path, lines: str, sentence: str
) -> None:
    text = NODE + NBD + f"[peers.beta]\n{lines}\n" + VOLUME
    assert sentence in problems(tmp_path, text)


def test_two_volumes_cannot_share_a_backing_by_path_link_or_inode(tmp_path: Path) -> None:
    real = tmp_path / "disk.img"
    real.touch()
    os.symlink(real, tmp_path / "symbolic.img")
    os.link(real, tmp_path / "hard.img")
    second = VOLUME.replace("r0", "r1")
    for other in (real, tmp_path / "symbolic.img", tmp_path / "hard.img"):
        text = NODE + NBD + PEER
        text += VOLUME.replace("/srv/repl/r0.img", str(real))
        text += second.replace("/srv/repl/r1.img", str(other))
        assert problems(tmp_path, text) == [
            f"volumes.r1.backing: {other} is the backing of volume r0 too; "
            "each volume needs its own"
        ]


def test_missing_backing_is_recognised_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "linked")
    text = NODE + NBD + PEER
    text += VOLUME.replace("/srv/repl/r0.img", "real/r.img")
    text += VOLUME.replace("r0", "r1").replace("/srv/repl/r1.img", "linked/r.img")
    [line] = problems(tmp_path, text)
    assert "is the backing of volume r0 too" in line


TLS = """
[tls]
certificate = "alpha.crt"
key = "alpha.key"
authority = "ca.crt"
"""


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    """A folder with alpha's certificate and key, and the authority's certificate."""
    assert main(["tls", "init", str(tmp_path), "alpha", "beta"]) == 0
    return tmp_path


def test_tls_table_allows_peers_beyond_loopback(certified: Path) -> None:
    text = (NODE + NBD + TLS + PEER + VOLUME).replace("127.0.0.2:7790", "10.0.0.2:7790")
    config = load(certified, text.replace("127.0.0.1:7790", "0.0.0.0:7790"))
    assert config.tls is not None and config.tls.key == str(certified / "alpha.key")
    [line] = problems(
        certified, text.replace('listen = "127', 'metrics = "10.0.0.1:9790"\nlisten = "127')
    )
    assert line.startswith("node.metrics: ") and "plaintext" in line


@pytest.mark.parametrize(
    ("break_it", "key"),
    [
        (lambda folder: (folder / "ca.crt").unlink(), "tls.authority"),
        (lambda folder: (folder / "ca.crt").write_text("none"), "tls.authority"),
        (lambda folder: (folder / "alpha.crt").write_text("none"), "tls.certificate"),
        (lambda folder: (folder / "beta.key").rename(folder / "alpha.key"), "tls.certificate"),
    ],
)
def test_tls_files_that_do_not_fit_are_named(
    certified: Path, break_it: Callable[[Path], object], key: str
) -> None:
    break_it(certified)
    [line] = problems(certified, NODE + NBD + TLS + PEER + VOLUME)
    assert line.startswith(f"{key}: "), line


def test_fingerprint_is_a_sha256_and_needs_tls(certified: Path) -> None:
    pinned = PEER.rstrip() + '\nfingerprint = "' + "AB:" * 31 + 'AB"\n'
    config = load(certified, NODE + NBD + TLS + pinned + VOLUME)
    assert config.peers["beta"].fingerprint == "ab" * 32
    [line] = problems(certified, NODE + NBD + pinned + VOLUME)
    assert "only with a [tls] table" in line
    [line] = problems(certified, NODE + NBD + TLS + pinned.replace("AB:AB", "AB") + VOLUME)
    assert "64 hexadecimal digits" in line


def test_volume_with_a_peer_needs_a_listen_address(tmp_path: Path) -> None:
    node = NODE.replace('listen = "127.0.0.1:7790"', "")
    [line] = problems(tmp_path, node + NBD + PEER + VOLUME)
    assert line.startswith("node.listen: required by volumes with a peer")
    assert load(tmp_path, node + NBD + PEER + VOLUME.replace('["beta"]', "[]"))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("127.0.0.1:7790", "0.0.0.0:7791", "node.listen"),
        ("127.0.0.1:7790", "alpha.example:7790", "node.listen"),
        ("127.0.0.2:7790", "10.0.0.2:7790", "peers.beta.address"),
        ('socket = "/run/repl/nbd.sock"', 'listen = "[::]:10809"', "nbd.listen"),
        ('listen = "127', 'metrics = "10.0.0.1:9790"\nlisten = "127', "node.metrics"),
    ],
)
def test_plaintext_beyond_loopback_needs_insecure(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    text = (NODE + NBD + PEER + VOLUME).replace(old, new)
    [line] = problems(tmp_path, text)
    assert line.startswith(f"{key}: ")
    assert "plaintext is only allowed on loopback unless [node] insecure = true" in line
    assert load(tmp_path, text.replace("[node]", "[node]\ninsecure = true"))


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    text = NODE.replace("/var/lib/repl", "state").replace("/run/repl/repld.sock", "c.sock")
    text += NBD.replace("/run/repl/", "") + PEER + VOLUME.replace("/srv/repl/", "disks/")
    config = load(tmp_path, text)
    assert config.node.state_dir == str(tmp_path / "state")
    assert config.node.control == str(tmp_path / "c.sock")
    assert config.nbd.socket == str(tmp_path / "nbd.sock")
    assert config.volumes["r0"].backing == str(tmp_path / "disks" / "r0.img")


def test_unix_socket_path_longer_than_107_bytes_is_refused(tmp_path: Path) -> None:
    longest = "/" + "s" * 106
    assert load(tmp_path, NODE + NBD.replace("/run/repl/nbd.sock", longest))
    for old, key in (
        ("/run/repl/nbd.sock", "nbd.socket"),
        ("/run/repl/repld.sock", "node.control"),
    ):
        [line] = problems(tmp_path, (NODE + NBD).replace(old, longest + "s"))
        assert line.startswith(f"{key}: ")
        assert line.endswith("has 108 bytes; the path of a Unix socket has 107 at most")


def test_listeners_that_collide_are_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, NODE + NBD.replace("nbd.sock", "repld.sock")) == [
        "nbd.socket: is the same socket as node.control"
    ]
    assert problems(tmp_path, NODE + NBD + 'listen = "localhost:7790"\n') == [
        "nbd.listen: localhost:7790 is taken by node.listen = 127.0.0.1:7790"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "peer_timeout_s = 0",
        "ping_interval_s = -1",
        "worker_timeout_s = nan",
        "connect_timeout_s=inf",
    ],
)
def test_timeouts_are_bounded(tmp_path: Path, line: str) -> None:
    [problem] = problems(tmp_path, NODE + NBD + f"[timeouts]\n{line}\n")
    assert problem.startswith("timeouts.")
    assert "seconds, not" in problem


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.2:7790", Address("10.0.0.2", 7790)),
        ("[fd00::2]:1", Address("fd00::2", 1)),
        ("beta.example:65535", Address("beta.example", 65535)),
    ],
)
def test_addresses_read_back_as_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":7790", "h:0", "h:65536", "h:-1", "h:٣", "fd00::2:7790", "[h]:1",
     "10.0.0:1", "10.0.0.256:1", "a b:1", "h:7790 ", "[::1:1", "-h:1"],
)  # fmt: skip
def test_unclear_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address|port must be"):
        parse_address(text)


def test_importing_the_settings_does_not_import_pydantic() -> None:
    code = "import sys, repl.config; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
