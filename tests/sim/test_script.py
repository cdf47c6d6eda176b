"""Scripts say which line is not so, and can be rewritten to what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.script import ScriptError, main, run_script

SCRIPT = """\
# A comment stays.
start alpha beta
expect alpha phase {phase}   # and so does this one
alpha promote
expect {verdict}
alpha write 0 4k v1
expect ack v1
expect beta holds 0 4k {holds}
expect not {equal}
"""
TRUE = SCRIPT.format(phase="established", verdict="granted", holds="v1", equal="ack v2")


def test_a_line_that_is_not_so_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text("start alpha beta\nexpect alpha role primary\n")
    with pytest.raises(ScriptError, match=r"wrong\.txt:2: expect alpha role primary"):
        run_script(path)


def test_rewriting_makes_a_wrong_script_come_true(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text(
        SCRIPT.format(phase="idle", verdict="refused DISK_FAILED", holds="zero", equal="ack v1")
    )
    assert main(["--rewrite", str(path)]) == 0
    rewritten = path.read_text()
    assert "expect alpha phase established   # and so does this one" in rewritten
    assert "expect granted" in rewritten and "expect ack v1" in rewritten
    assert "expect not beta holds 0 4k zero" in rewritten
    assert rewritten.startswith("# A comment stays.\n")
    run_script(path)


def test_rewriting_leaves_a_true_script_alone(tmp_path: Path) -> None:
    path = tmp_path / "true.txt"
    text = TRUE.replace("expect not ack v2\n", "expect equal\n")
    path.write_text(text)
    assert main(["--rewrite", str(path)]) == 0
    assert path.read_text() == text
