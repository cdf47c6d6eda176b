"""A copy that was promoted as it was (`--lose-data`) meets a node that was primary all along."""

from __future__ import annotations

from repl.core.handshake import MIRROR, TARGET_ACTIONS, decide
from tests.core.test_handshake import HIGH, MEETINGS, THEIRS_ID, forced


def test_a_copy_promoted_as_it_was_is_never_copied_over_a_primary() -> None:
    met = 0
    for low, high in MEETINGS:
        action = decide(low, high).action
        for mine, theirs, told in ((low, high, action), (high, low, MIRROR[action])):
            serves = mine.is_primary and not mine.inconsistent
            if serves and theirs.lineage == forced(THEIRS_ID, HIGH):
                met += 1
                assert told not in TARGET_ACTIONS, (low, high)
    assert met
