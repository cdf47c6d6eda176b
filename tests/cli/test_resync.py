"""`replctl resync` and `continue`: orders, and the name that a dangerous one needs."""

from __future__ import annotations

import pytest

from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.test_role import at_a_terminal, posted


@pytest.mark.parametrize(
    ("arguments", "verb", "body"),
    [
        (["pause"], "pause", {}),
        (["resume"], "resume", {}),
        (["limit", "50MB/s"], "limit", {"rate_bytes_per_s": 50_000_000}),
        (["limit", "1MiB/s"], "limit", {"rate_bytes_per_s": 1 << 20}),
        (["limit", "none"], "limit", {"rate_bytes_per_s": 0}),
        (["limit", "off"], "limit", {"rate_bytes_per_s": 0}),
        (["limit", "0"], "limit", {"rate_bytes_per_s": 0}),
    ],
)
def test_an_order_is_passed_on_and_answered_in_words(
    daemon: FakeDaemon,
    replctl: Operator,
    arguments: list[str],
    verb: str,
    body: dict[str, int],
) -> None:
    daemon.on("POST", f"/v1/volumes/r0/resync-{verb}", (200, {"reason": "done so"}))
    result = replctl("resync", "r0", *arguments)
    assert (result.exit_status, result.out, result.err) == (0, "", "done so\n")
    assert posted(daemon) == [body]


def test_a_full_comparison_of_copies_that_know_each_other_asks_nothing(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.serve_status(recorded.status(recorded.secondary("r0")))
    daemon.on("POST", "/v1/volumes/r0/resync-full", (200, {}))
    assert replctl("resync", "r0", "--full", "--from", "beta").exit_status == 0
    assert posted(daemon) == [{"source": "beta"}]


def strangers() -> dict[str, object]:
    other = recorded.peer(
        connection_state="refused",
        replication_state="off",
        last_handshake={"rule": "no-common-contact", "action": "refuse"},
    )
    return recorded.secondary("r0", peers=[other], why="one of them was restored")


def test_copies_that_do_not_know_each_other_need_the_volumes_name(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.serve_status(recorded.status(strangers()))
    daemon.on("POST", "/v1/volumes/r0/resync-full", (200, {}))
    command = ["resync", "r0", "--full", "--from", "beta"]
    result = replctl(*command)
    assert result.exit_status == 7
    assert "replctl resync r0 --full --from beta --confirm r0" in result.err
    assert replctl(*command, "--confirm", "r1").exit_status == 7
    assert posted(daemon) == []
    assert replctl(*command, "--confirm", "r0").exit_status == 0
    screen = at_a_terminal(monkeypatch, "r0\n")
    assert replctl(*command).exit_status == 0
    assert "every block that differs from beta's is overwritten here" in screen.getvalue()
    assert "one of them was restored" in screen.getvalue()
    assert posted(daemon) == [{"source": "beta"}] * 2


def test_continue_is_passed_on(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("POST", "/v1/volumes/r0/continue", (200, {"reason": "it goes on without beta"}))
    result = replctl("continue", "r0")
    assert (result.exit_status, result.err) == (0, "it goes on without beta\n")
