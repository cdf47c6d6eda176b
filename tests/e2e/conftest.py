"""Fixtures of the tests on real processes: a pair of nodes and the book of what was promised."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import DEFAULT_SIZE_BYTES, VolumeSpec
from tests.ledger import Ledger
from tests.pair import Pair

#: One block of the ledger is one block of the dirty map.
BLOCK_BYTES = 4096
#: For scenarios in which a whole copy is compared or made anew.
SMALL_BYTES = 16 << 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two nodes with one volume, r0, that do not run yet."""
    with Pair.make() as pair:
        yield pair


@pytest.fixture
def ledger() -> Ledger:
    """The book of r0, which held zeroes at first."""
    return Ledger(DEFAULT_SIZE_BYTES // BLOCK_BYTES, seed=20, block_bytes=BLOCK_BYTES)


@pytest.fixture
def small_pair() -> Iterator[Pair]:
    """Two nodes with one small volume, r0, that do not run yet."""
    with Pair.make((VolumeSpec("r0", SMALL_BYTES),)) as pair:
        yield pair


@pytest.fixture
def small_ledger() -> Ledger:
    """The book of `small_pair`'s r0."""
    return Ledger(SMALL_BYTES // BLOCK_BYTES, seed=21, block_bytes=BLOCK_BYTES)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An empty temporary folder whose path leaves room for Unix sockets (107 bytes) below it."""
    folder = Path(tempfile.mkdtemp(prefix="repl-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
