"""Sockets that were made by whoever started the process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from nbdserver import activation
from nbdserver.activation import inherited_sockets
from nbdserver.errors import ListenError


@pytest.fixture
def first_descriptor(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the test may put sockets: pytest's own descriptors are in the way of 3."""
    first = 200
    monkeypatch.setattr(activation, "FIRST_DESCRIPTOR", first)
    yield first
    for descriptor in range(first, first + 3):
        try:
            os.close(descriptor)
        except OSError:
            continue  # The code under test took it, or it was never used.


def environment(count: object, pid: int | None = None) -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid() if pid is None else pid),
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": "nbd",
        "HOME": "/",
    }


def test_listening_sockets_are_taken_over_once(first_descriptor: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        os.dup2(one.fileno(), first_descriptor)
        os.dup2(two.fileno(), first_descriptor + 1)
        variables = environment(2)
        found = inherited_sockets(variables)
        assert [each.getsockname() for each in found] == [one.getsockname(), two.getsockname()]
        assert not any(os.get_inheritable(each.fileno()) for each in found)
        # No child may take them for its own.
        assert variables == {"HOME": "/"}
        assert inherited_sockets(variables) == []
        for each in found:
            each.close()


@pytest.mark.parametrize(
    "variables",
    [{}, environment(1, pid=1), environment(0), environment("x"), environment("")],
)
def test_what_is_meant_for_somebody_else_is_left_alone(variables: dict[str, str]) -> None:
    assert inherited_sockets(variables) == []


def test_descriptor_that_is_no_socket_is_refused(first_descriptor: int) -> None:
    os.dup2(0, first_descriptor)
    with pytest.raises(ListenError, match="is no socket"):
        inherited_sockets(environment(1))


def test_connected_socket_is_refused_with_what_to_change(first_descriptor: int) -> None:
    one, two = socket.socketpair()
    with one, two:
        os.dup2(one.fileno(), first_descriptor)
        with pytest.raises(ListenError, match="Accept=no"):
            inherited_sockets(environment(1))


def test_socket_of_another_family_is_refused_in_words(
    first_descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = activation.FAMILIES
    assert known == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6}
    # Not every kernel has a further family whose sockets listen.
    monkeypatch.setattr(activation, "FAMILIES", known - {socket.AF_INET})
    with socket.create_server(("127.0.0.1", 0)) as sock:
        os.dup2(sock.fileno(), first_descriptor)
        with pytest.raises(ListenError, match="another kind than Unix, IPv4 or IPv6"):
            inherited_sockets(environment(1))
