"""One served file and one live pair for all interop tests of a process, checked after each file of
tests: both copies equal, in sync, and nothing loud in a log."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import libnbd
from tests.certificates import make_certificates, make_client, server_folder
from tests.daemon import VolumeSpec
from tests.interop.targets import FileTarget, PairTarget, Target
from tests.pair import Pair

TOOL_DEADLINE_S = 120.0

Tool = Callable[..., str]
Connect = Callable[..., Any]


@pytest.fixture(scope="session")
def live_pair() -> Iterator[Pair]:
    with Pair.make() as pair:
        pair.start_in_sync(primary=pair.alpha)
        yield pair


@pytest.fixture(scope="session")
def served_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileTarget]:
    target = FileTarget(tmp_path_factory.mktemp("served"))
    yield target
    target.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, the certificates of alpha and beta, and of the client ann."""
    folder = make_certificates(tmp_path_factory.mktemp("tls"), "alpha", "beta")
    make_client(folder, "ann")
    server_folder(folder, "alpha")
    return folder


@contextlib.contextmanager
def tls_pair(certificates: Path) -> Iterator[Pair]:
    """Everything encrypted, and r0 for ann only."""
    with Pair.make((VolumeSpec(options=('clients = ["ann"]',)),)) as pair:
        for node in pair.nodes:
            node.tls_folder = certificates
            node.nbd_options = ('tls = "required"',)
            node.write_config()
        pair.start_in_sync(primary=pair.alpha)
        yield pair


@pytest.fixture(scope="session")
def live_tls_pair(certificates: Path) -> Iterator[Pair]:
    with tls_pair(certificates) as pair:
        yield pair


@pytest.fixture(scope="session")
def served_tls_file(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FileTarget]:
    folder = tmp_path_factory.mktemp("served")
    target = FileTarget(folder, certificates / "alpha-server", certificates / "ann")
    yield target
    target.close()


@pytest.fixture(scope="module")
def used_targets() -> Iterator[dict[str, Target]]:
    """The targets that the tests of this file use, by kind; afterwards they must have settled."""
    used: dict[str, Target] = {}
    yield used
    for target in used.values():
        target.settle()


def target_of(kind: str, request: pytest.FixtureRequest, used_targets: dict[str, Target]) -> Target:
    """The target of that kind, made when it is first asked for."""
    if kind not in used_targets:
        find = request.getfixturevalue
        if kind == "file":
            used_targets[kind] = find("served_file")
        elif kind == "file-tls":
            used_targets[kind] = find("served_tls_file")
        elif kind == "pair":
            used_targets[kind] = PairTarget(find("live_pair"))
        else:
            used_targets[kind] = PairTarget(find("live_tls_pair"), find("certificates") / "ann")
    return used_targets[kind]


@pytest.fixture(
    params=[
        "file",
        "pair",
        # One of each kind of client is in `test_over_tls.py`; this is all of them again.
        pytest.param("file-tls", marks=pytest.mark.slow),
        pytest.param("pair-tls", marks=pytest.mark.slow),
    ]
)
def export(request: pytest.FixtureRequest, used_targets: dict[str, Target]) -> Target:
    """The export under test."""
    return target_of(request.param, request, used_targets)


@pytest.fixture(params=["file-tls", "pair-tls"])
def tls_export(request: pytest.FixtureRequest, used_targets: dict[str, Target]) -> Target:
    """The export under test, over TLS."""
    return target_of(request.param, request, used_targets)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects libnbd handles; they are gone after the test."""
    handles: list[Any] = []

    def connected(uri: str, **settings: Any) -> Any:
        """A handle that checks nothing by itself, so that the server's own checks are seen.

        Keyword arguments name setters of libnbd, called before connecting.
        """
        handle = libnbd.load().NBD()
        handle.set_strict_mode(0)
        # What the server says of names and block sizes is kept only if asked for.
        handle.set_full_info(True)
        # Certificates are named in the URI.
        handle.set_uri_allow_local_file(True)
        for name, value in settings.items():
            getattr(handle, name)(value)
        handle.connect_uri(uri)
        handles.append(handle)
        return handle

    yield connected
    for handle in handles:
        if handle.aio_is_ready():
            handle.shutdown()


@pytest.fixture
def run_tool() -> Tool:
    def run(*command: str | Path, cwd: Path | None = None) -> str:
        """Run another project's tool, which must succeed; return its standard output."""
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=TOOL_DEADLINE_S,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            check=False,
        )
        assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def blank(export: Target, connect: Connect) -> Target:
    """The export, all of it a hole."""
    handle = connect(export.uri())
    handle.trim(handle.get_size(), 0)
    handle.zero(handle.get_size(), 0)
    handle.flush()
    return export
