"""The dump shows facts, history and maps, beside a running worker and without touching a byte."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from repl.core.lineage import Generation, Origin
from repl.core.outbox import Commit, MapName, MapPage
from repl.errors import NoSuchThing, Refused
from repl.store.dump import RUNS_SHOWN, dump_json, dump_text
from repl.store.open import Store, open_store

SIZE_BYTES = 64 << 20
GENERATION = Generation(3, 77, 9, (9, 12), True, Origin.PEER_DEAD, 1_700_000_000, "by an operator")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    ids = itertools.count(50)
    opened = open_store(
        str(tmp_path), "r0", SIZE_BYTES, str(tmp_path / "r0.img"), ("beta",), lambda: next(ids)
    )
    bits = bytearray(4032)
    for byte in range(2 * RUNS_SHOWN):
        bits[byte] = 0b110
    facts = replace(opened.facts, lineage=(GENERATION,), clean=False, boot_id="boot-1")
    page = MapPage(MapName.DIRTY, "beta", 0, bytes(bits))
    opened.metadata.carry_out(opened.metadata.prepare(Commit(1, facts, [page])))
    yield opened
    opened.close()


def test_the_object_holds_everything_while_the_store_is_open(store: Store, tmp_path: Path) -> None:
    before = Path(tmp_path / "volumes" / "r0.meta").read_bytes()
    found = dump_json(str(tmp_path), "r0")
    assert json.loads(json.dumps(found)) == found
    assert found["facts"]["lineage"][0]["id"] == 77
    assert found["facts"]["boot_id"] == "boot-1"
    assert found["dirty"]["beta"]["set_blocks"] == 4 * RUNS_SHOWN
    assert found["dirty"]["beta"]["first_runs"][0] == {"offset": 4096, "length": 8192}
    assert len(found["dirty"]["beta"]["first_runs"]) == RUNS_SHOWN
    assert found["dirty"]["beta"]["more_runs"]
    assert found["maps"]["intents"]["set_blocks"] == 0
    assert found["reports"] == []
    assert Path(tmp_path / "volumes" / "r0.meta").read_bytes() == before


def test_the_text_names_history_maps_and_reports(store: Store, tmp_path: Path) -> None:
    text = dump_text(str(tmp_path), "r0")
    assert "2023-11-14T22:13:20Z" in text
    assert "peer-dead" in text
    assert "(by an operator)" in text
    assert "members 9,12 answered" in text
    assert "dirty beta: 32 of 16384 blocks of 4096 bytes, 131072 bytes: 4096+8192" in text
    assert text.endswith("reports\n  none\n")


def test_damage_is_in_the_reports(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "volumes" / "r0.meta"
    found = bytearray(path.read_bytes())
    found[found.index(b"REPLPAGE") + 100] ^= 1
    path.write_bytes(found)
    assert "dirty map of beta: 1 page torn" in dump_text(str(tmp_path), "r0")


def test_a_volume_without_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSuchThing) as caught:
        dump_json(str(tmp_path), "r9")
    assert caught.value.code == "NO_SUCH_VOLUME"


def test_metadata_that_cannot_be_trusted_is_refused(store: Store, tmp_path: Path) -> None:
    os.truncate(tmp_path / "volumes" / "r0.meta", 100 << 10)
    with pytest.raises(Refused) as caught:
        dump_text(str(tmp_path), "r0")
    assert caught.value.code == "METADATA_CORRUPT"
