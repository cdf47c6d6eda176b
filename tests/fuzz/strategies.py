"""Hypothesis strategies for the inputs of a target: messages, each as it should be or not quite.

Other than the coverage-guided fuzzer it begins with nothing, finds the shortest failing input by
itself, and needs no package that has to be compiled.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.grammar import EDGES, Grammar, with_number
from tests.fuzz.inputs import CHOICE_BYTES

MESSAGES_MAX = 8


@st.composite
def changed_message(draw: st.DrawFn, grammar: Grammar) -> bytes:
    """A sample with a number, a byte or its end another way; repaired afterwards or not."""
    message = draw(st.sampled_from(list(grammar.samples)))
    step = draw(st.integers(0, 4))
    if step == 1 and grammar.fields:
        offset, width = draw(st.sampled_from(list(grammar.fields)))
        message = with_number(message, offset, width, draw(st.sampled_from(EDGES)))
    elif step == 2 and message:
        place = draw(st.integers(0, len(message) - 1))
        message = message[:place] + draw(st.binary(max_size=6)) + message[place + 1 :]
    elif step == 3:
        message = message[: draw(st.integers(0, len(message)))]
    return grammar.repair(message) if draw(st.booleans()) else message


def inputs(grammar: Grammar) -> st.SearchStrategy[bytes]:
    """Whole inputs: choices, and a stream of messages."""
    head = st.binary(min_size=CHOICE_BYTES, max_size=CHOICE_BYTES)
    good = st.sampled_from(list(grammar.samples))
    messages = st.lists(good | changed_message(grammar), max_size=MESSAGES_MAX)
    return st.builds(lambda choices, parts: choices + b"".join(parts), head, messages)
