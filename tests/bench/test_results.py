"""The results file comes back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bench import results
from tests.bench.runs import run_of

RUN = run_of({"write-4k-32": {"repl": [100.5, 110.25], "limit": [200.0]}})


def test_run_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    results.save(RUN, path)
    assert results.load(path) == RUN


def test_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(RUN.model_dump_json().replace('"suite":', '"suit":1,"suite":'))
    with pytest.raises(ValidationError, match="suit"):
        results.load(path)


def test_cell_is_found_by_row_and_contender() -> None:
    cell = RUN.cell("write-4k-32", "repl")
    assert cell is not None
    assert [sample.iops for sample in cell.samples] == [100.5, 110.25]
    assert RUN.cell("write-4k-32", "mirror-tcp") is None
