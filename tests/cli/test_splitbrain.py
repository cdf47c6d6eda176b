"""`splitbrain show` and `resolve`: nothing is hidden, nothing chosen without the volume's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repl import errors
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.test_role import at_a_terminal, posted

SHOW = "/v1/volumes/r0/splitbrain"
RESOLVE = "/v1/volumes/r0/splitbrain-resolve"
KEEP_ALPHA = ("splitbrain", "resolve", "r0", "--keep", "alpha")


def serve(daemon: FakeDaemon, found: dict[str, Any]) -> None:
    daemon.on("GET", SHOW, (200, found))


# show


def test_show_names_the_fork_both_histories_and_the_choices(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    serve(daemon, recorded.split_brain_shown())
    result = replctl("splitbrain", "show", "r0")
    assert result.exit_status == 0
    lines = result.out.splitlines()
    assert lines[0] == "r0 is in a split-brain: alpha and beta were written apart."
    assert "generation 2 is the last that both copies hold (promoted, 2026-09-" in lines[1]
    [alpha] = [line for line in lines if line.startswith("alpha")]
    assert alpha == ("alpha   primary, up-to-date, 1 client (10.0.0.9:4711); changed 8 KiB at most")
    assert "went on alone: manual: beta did not answer  (generation 3, answered writes)" in (
        result.out
    )
    assert "promoted with --lose-data  (generation 4, answered no write)" in result.out
    assert "Differ  at most 12 KiB of 40 GiB: the blocks that either side changed" in result.out
    assert lines[-2].startswith("Next    replctl splitbrain resolve r0 --keep alpha   or ")
    assert lines[-1].endswith("replctl demote r0 --drop-clients")


def test_show_says_when_nobody_knows_where_the_copies_differ(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    found = recorded.split_brain_shown(differing_known_from_maps=False)
    found["sides"][1]["changed_bytes_at_most"] = None
    serve(daemon, found)
    out = replctl("splitbrain", "show", "r0").out
    assert "nobody knows where: all 40 GiB are compared by digest" in out
    assert "; nobody knows where it changed" in out


def test_show_says_what_was_chosen_already(daemon: FakeDaemon, replctl: Operator) -> None:
    found = recorded.split_brain_shown(next="nothing to do")
    found["sides"][0]["kept"] = found["sides"][1]["agreed"] = True
    found["sides"][1]["generations_left_out"] = 7
    serve(daemon, found)
    lines = replctl("splitbrain", "show", "r0").out.splitlines()
    assert "        it is kept: that was chosen and stored" in lines
    assert "        it agreed to be given up" in lines
    assert "        and 7 between them" in lines
    assert lines[-1] == "Next    nothing to do"


def test_show_of_a_volume_that_is_well_is_no_failure(daemon: FakeDaemon, replctl: Operator) -> None:
    serve(daemon, recorded.not_split_shown())
    result = replctl("splitbrain", "show", "r0")
    assert (result.exit_status, result.err) == (0, "")
    assert result.out == (
        "r0 is not in a split-brain: both copies hold the same writes (beta).\n"
        "Next    replctl status r0\n"
    )
    assert json.loads(replctl("--json", "splitbrain", "show", "r0").out) == (
        recorded.not_split_shown()
    )


def test_a_hostile_answer_is_shown_without_harm(daemon: FakeDaemon, replctl: Operator) -> None:
    odd = {"counter": "x", "origin": "\x1b[31m", "made_at_s": 1e300, "permit": 5, "answered": "y"}
    side = {
        "node": "be\x1bta\n",
        "role": None,
        "clients": "many",
        "client_names": [3],
        "changed_bytes_at_most": -1,
        "generations": [odd, 5, {}],
        "generations_left_out": "some",
    }
    serve(
        daemon,
        recorded.split_brain_shown(
            sides=[side, 7, {}], fork=odd, differing_bytes_at_most="x", why=4, next=None
        ),
    )
    result = replctl("splitbrain", "show", "r0")
    assert result.exit_status == 0
    assert "\x1b" not in result.out and "at an unknown time" in result.out


# resolve


def test_a_choice_by_name_needs_no_terminal(daemon: FakeDaemon, replctl: Operator) -> None:
    serve(daemon, recorded.split_brain_shown())
    daemon.on("POST", RESOLVE, (200, {"reason": "alpha is kept; beta has given up"}))
    result = replctl(*KEEP_ALPHA, "--confirm", "r0")
    assert (result.exit_status, result.err) == (0, "alpha is kept; beta has given up\n")
    assert posted(daemon) == [{"keep": "alpha"}]


@pytest.mark.parametrize("flags", [[], ["--confirm", "r1"], ["--confirm", ""]])
def test_a_choice_without_the_name_is_not_confirmed(
    daemon: FakeDaemon, replctl: Operator, flags: list[str]
) -> None:
    serve(daemon, recorded.split_brain_shown())
    result = replctl(*KEEP_ALPHA, *flags)
    assert result.exit_status == 7
    assert "replctl splitbrain resolve r0 --keep alpha --confirm r0" in result.err
    assert posted(daemon) == []


def test_a_choice_on_a_terminal_shows_both_sides_and_asks_for_the_name(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(daemon, recorded.split_brain_shown())
    daemon.on("POST", RESOLVE, (200, {}))
    for typed, exit_status in (("yes\n", 7), ("r0\n", 0)):
        screen = at_a_terminal(monkeypatch, typed)
        assert replctl(*KEEP_ALPHA).exit_status == exit_status
        assert "promoted with --lose-data" in screen.getvalue()
        assert "You keep alpha: what only beta has of r0 since the fork is overwritten" in (
            screen.getvalue()
        )
    assert posted(daemon) == [{"keep": "alpha"}]


@pytest.mark.parametrize("flags", [[], ["--confirm", "r0"]])
def test_a_node_without_a_copy_cannot_be_kept(
    daemon: FakeDaemon, replctl: Operator, flags: list[str]
) -> None:
    serve(daemon, recorded.split_brain_shown())
    result = replctl("splitbrain", "resolve", "r0", "--keep", "gamma", *flags)
    assert result.exit_status == 4
    assert "alpha, beta" in result.err and "NO_SUCH_PEER" in result.err
    assert posted(daemon) == []


def test_nobody_is_asked_to_confirm_what_cannot_be_done(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    serve(daemon, recorded.not_split_shown())
    result = replctl(*KEEP_ALPHA)
    assert result.exit_status == 5
    assert result.err.splitlines() == [
        "r0 is not in a split-brain.  [NOT_SPLIT]",
        "Why   both copies hold the same writes (beta)",
        "Next  replctl status r0",
    ]


def test_a_refusal_keeps_its_words(daemon: FakeDaemon, replctl: Operator) -> None:
    serve(daemon, recorded.split_brain_shown())
    refusal = errors.Refused("No.", "beta is primary", "demote it", code="RESOLVE_PRIMARY")
    daemon.on("POST", RESOLVE, (409, {"error": refusal.to_json()}))
    result = replctl("--json", *KEEP_ALPHA, "--confirm", "r0")
    assert (result.exit_status, result.error()["code"]) == (5, "RESOLVE_PRIMARY")


def test_keep_is_required(replctl: Operator) -> None:
    assert replctl("splitbrain", "resolve", "r0").exit_status == 2
    assert replctl("splitbrain", "resolve", "r0", "--keep", "a b").exit_status == 2
