"""What `repld` refuses at start: three lines, the right exit status, and no data touched."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import MIB, Node, VolumeSpec
from tests.pair import Pair

REFUSED_AS_UNSAFE = 5
CONFIGURATION_INVALID = 8


@pytest.fixture
def lone() -> Iterator[Node]:
    """A node with one volume and no peer, configured and not started."""
    folder = Path(tempfile.mkdtemp(prefix="repl-lone-"))
    node = Node("alpha", folder / "alpha")
    node.write_config()
    yield node
    survivors = node.clean_up()
    shutil.rmtree(folder)
    assert not survivors


def assert_refused(node: Node, exit_status: int, code: str, *words: str) -> str:
    """`repld` ends with that status and says what, why and what to do next; return its words."""
    done = node.run_to_exit()
    assert done.returncode == exit_status, done.stderr
    assert f"[{code}]" in done.stderr
    assert "\nWhy " in done.stderr
    assert "\nNext " in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    return done.stderr


def assert_nothing_was_made(node: Node) -> None:
    """Neither metadata nor a backing file came into being."""
    assert not node.backing().exists()
    assert not list(node.state_dir.rglob("*.meta"))


def test_busy_nbd_port_is_refused_by_name(lone: Node) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", lone.nbd_port))
        holder.listen()
        assert_refused(
            lone, REFUSED_AS_UNSAFE, "ADDRESS_IN_USE", f"127.0.0.1:{lone.nbd_port}", "[nbd] listen"
        )
    assert_nothing_was_made(lone)


def test_busy_peer_port_is_refused_by_name(lone: Node) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", lone.peer_port))
        holder.listen()
        assert_refused(
            lone,
            REFUSED_AS_UNSAFE,
            "ADDRESS_IN_USE",
            f"127.0.0.1:{lone.peer_port}",
            "[node] listen",
        )
    assert_nothing_was_made(lone)


def test_unknown_key_is_named_with_file_and_nearest_name(lone: Node) -> None:
    lone.write_config(lone.config_text().replace("size = ", "siez = "))
    assert_refused(
        lone,
        CONFIGURATION_INVALID,
        "CONFIG_INVALID",
        str(lone.config_path),
        "volumes.r0.siez",
        "did you mean 'size'",
    )
    assert_nothing_was_made(lone)


def test_unknown_node_among_the_peers_is_refused(lone: Node) -> None:
    lone.write_config(lone.config_text().replace("peers = []", 'peers = ["gamma"]'))
    assert_refused(lone, CONFIGURATION_INVALID, "CONFIG_INVALID", "volumes.r0.peers", "gamma")
    assert_nothing_was_made(lone)


def test_own_address_as_a_peer_is_refused(lone: Node) -> None:
    lone.peer = ("beta", lone.peer_port)
    lone.write_config()
    assert_refused(
        lone, CONFIGURATION_INVALID, "CONFIG_INVALID", "peers.beta", "own listen address"
    )
    assert_nothing_was_made(lone)


def test_two_volumes_with_one_backing_are_refused(lone: Node) -> None:
    lone.volumes = (VolumeSpec("r0"), VolumeSpec("r1"))
    text = lone.config_text().replace(str(lone.backing("r1")), str(lone.backing("r0")))
    lone.write_config(text)
    assert_refused(
        lone, CONFIGURATION_INVALID, "CONFIG_INVALID", "volumes.r1.backing", str(lone.backing("r0"))
    )
    assert_nothing_was_made(lone)


def test_two_volumes_with_one_backing_behind_a_link_are_refused(lone: Node) -> None:
    lone.volumes = (VolumeSpec("r0"), VolumeSpec("r1"))
    lone.write_config()
    lone.backing("r0").write_bytes(b"precious")
    os.link(lone.backing("r0"), lone.backing("r1"))
    assert_refused(lone, CONFIGURATION_INVALID, "CONFIG_INVALID", "volumes.r1.backing")
    assert lone.backing("r0").read_bytes() == b"precious"


def test_absent_configuration_is_named(lone: Node) -> None:
    lone.config_path.unlink()
    assert_refused(lone, CONFIGURATION_INVALID, "CONFIG_UNREADABLE", str(lone.config_path))


def test_second_daemon_on_one_state_directory_is_refused(lone: Node) -> None:
    lone.start()
    pid = lone.worker_pid()
    second = Node("alpha", lone.folder.parent / "second")
    text = second.config_text().replace(str(second.state_dir), str(lone.state_dir))
    second.write_config(text)
    assert_refused(second, REFUSED_AS_UNSAFE, "STATE_DIR_IN_USE", str(lone.state_dir))
    assert_nothing_was_made(second)
    assert lone.worker_pid() == pid
    assert second.clean_up() == []


def test_unreadable_backing_closes_that_volume_alone(lone: Node) -> None:
    lone.volumes = (VolumeSpec("r0"), VolumeSpec("r1"))
    lone.write_config()
    # A folder in the backing's place cannot be opened for writing, by root neither.
    lone.backing("r0").mkdir()
    lone.start()
    closed = lone.wait_closed()
    assert closed["problem"]["code"] == "BACKING_UNREADABLE"
    assert str(lone.backing("r0")) in closed["problem"]["what"] + closed["problem"]["why"]
    refused = lone.ctl("promote", "r0")
    assert refused.returncode == REFUSED_AS_UNSAFE, refused.stderr
    lone.wait_open("r1")
    lone.promote("r1")
    lone.wait_primary("r1")


@pytest.mark.parametrize("changed", ["configuration", "backing"])
def test_another_size_than_before_closes_the_volume(lone: Node, changed: str) -> None:
    lone.start()
    lone.wait_open()
    assert lone.stop() == 0
    size_bytes = lone.volumes[0].size_bytes
    if changed == "configuration":
        lone.volumes = (VolumeSpec("r0", size_bytes + MIB),)
        lone.write_config()
    else:
        os.truncate(lone.backing(), size_bytes - MIB)
    size_before = lone.backing().stat().st_size
    lone.start()
    closed = lone.wait_closed()
    assert closed["problem"]["code"] in {"BACKING_SIZE", "METADATA_MISMATCH"}
    assert closed["problem"]["next"]
    assert lone.backing().stat().st_size == size_before


def test_absent_backing_is_not_made_anew_over_old_metadata(lone: Node) -> None:
    lone.start()
    lone.wait_open()
    assert lone.stop() == 0
    lone.backing().unlink()
    lone.start()
    closed = lone.wait_closed()
    assert closed["problem"]["code"] == "BACKING_MISSING"
    assert not lone.backing().exists()


def test_peers_of_different_size_refuse_each_other() -> None:
    with Pair.make() as pair:
        pair.beta.volumes = (VolumeSpec("r0", 2 * pair.alpha.volumes[0].size_bytes),)
        pair.beta.write_config()
        pair.start()
        for node in pair.nodes:
            node.wait_volume(
                lambda v: v["peers"][0]["connection_state"] == "refused", "refuses the other size"
            )
            assert "size" in node.volume()["why"] + str(node.peer_of())


def test_node_that_the_other_does_not_know_is_refused() -> None:
    with Pair.make() as pair:
        text = pair.alpha.config_text()
        pair.alpha.write_config(text.replace('name = "alpha"', 'name = "aleph"'))
        pair.start()
        pair.alpha.wait_volume(
            lambda v: v["peers"][0]["connection_state"] == "refused", "is refused by beta"
        )
        assert "aleph" in pair.beta.log_text()
        assert pair.beta.peer_of()["connection_state"] != "connected"
