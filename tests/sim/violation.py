"""What a checker raises: the name of the rule that was broken, and how.

An `AssertionError`, so that scripts and tests see it as one; but raised by name and never through
an `assert` statement, so that the checkers work with assertions switched off too.
"""

from __future__ import annotations

import enum


class Rule(enum.Enum):
    """The checkers of design §9. The value names the rule in reports and in the mutants' table."""

    #: An acknowledged (flushed) write is readable after any allowed failover (loss of power).
    LEDGER = "promise"
    EQUAL = "members-equal"
    TWO_PRIMARIES = "two-primaries"
    INCONSISTENT = "inconsistent-served"
    LINEAGE = "lineage"
    OPS = "one-answer"
    DIRTY = "dirty-bits"
    CONVERGENCE = "convergence"
    #: Nothing leaves a node before what it rests on is durable there.
    ORDER = "ordering-law"
    #: Two honest peers, and the engine with its core, keep to the protocol.
    PROTOCOL = "protocol"
    #: What a crash leaves of the metadata file can be read.
    METADATA = "metadata-whole"
    #: A copy that nobody gave up is overwritten, or a person is needed where nothing was forced.
    KEPT = "both-kept"
    #: A primary goes on alone without the leave that it has to ask for.
    PERMIT = "permit"
    #: More of a volume is under write intents than is compared after a crash at most.
    BOUND = "intents-bound"


class Violation(AssertionError):
    """The simulated system broke a promise."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(f"[{rule.value}] {text}")
        self.rule = rule
