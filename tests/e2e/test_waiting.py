"""`replctl wait` on real nodes: each state, when it is there, when it comes, when it does not."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor

from tests.daemon import Node
from tests.pair import Pair

STATES = ("connected", "in-sync", "promotable", "primary")
LONG_ENOUGH = "30"


def wait(node: Node, state: str, timeout: str = "0") -> subprocess.CompletedProcess[str]:
    return node.ctl("--json", "wait", "r0", "--for", state, "--timeout", timeout)


def states_now(node: Node) -> set[str]:
    """The states for which `wait` returns at once; every other one must time out with a reason."""
    reached = set()
    with ThreadPoolExecutor(len(STATES)) as pool:
        answers = pool.map(lambda state: wait(node, state), STATES)
    for state, done in zip(STATES, answers, strict=True):
        if done.returncode == 0:
            reached.add(state)
            continue
        assert done.returncode == 6, done
        error = json.loads(done.stdout)["error"]
        assert error["code"] == "TIMED_OUT" and error["why"], error
    return reached


def assert_comes(waiting: Future[subprocess.CompletedProcess[str]]) -> None:
    done = waiting.result()
    assert done.returncode == 0, done


def test_wait_tells_each_state_apart_on_either_node(pair: Pair) -> None:
    with ThreadPoolExecutor(2) as pool:
        pair.alpha.start()
        assert states_now(pair.alpha) == set()
        waiting = pool.submit(wait, pair.alpha, "in-sync", LONG_ENOUGH)
        pair.beta.start()
        assert_comes(waiting)
        pair.wait_in_sync()
        assert states_now(pair.alpha) == {"connected", "in-sync", "promotable"}

        waiting = pool.submit(wait, pair.alpha, "primary", LONG_ENOUGH)
        pair.alpha.promote()
        assert_comes(waiting)
        assert wait(pair.beta, "in-sync", LONG_ENOUGH).returncode == 0
        # A promotion of the primary is granted: it is primary already.
        assert states_now(pair.alpha) == set(STATES)
        # One of the other node would be refused as long as this one is primary.
        pair.beta.wait_volume(lambda v: v["peers"][0]["role"] == "primary", "knows its primary")
        assert states_now(pair.beta) == {"connected", "in-sync"}

        waiting = pool.submit(wait, pair.beta, "promotable", LONG_ENOUGH)
        pair.alpha.ctl_ok("demote", "r0")
        assert_comes(waiting)
        pair.beta.promote()

        pair.beta.kill()
        pair.alpha.wait_alone()
        assert states_now(pair.alpha) == set()
