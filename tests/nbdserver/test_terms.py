"""An agreement survives the way to another process unchanged."""

from __future__ import annotations

import json

import pytest

from nbdserver import terms
from nbdserver.export import ExportInfo
from nbdserver.terms import ReplyStyle, Terms


@pytest.mark.parametrize("style", list(ReplyStyle))
def test_agreement_is_the_same_behind_json(style: ReplyStyle) -> None:
    export = ExportInfo("vol/é", 1 << 40, can_fast_zero=True, contexts=("base:allocation", "x-a:b"))
    agreed = Terms(style, ("x-a:b",))
    passed_on = json.loads(json.dumps(terms.to_json(export, agreed)))
    assert terms.from_json(passed_on) == (export, agreed)


@pytest.mark.parametrize("change", [{"style": "fast"}, {"export": {}}, {"contexts": None}])
def test_agreement_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    passed_on = terms.to_json(ExportInfo("", 0), Terms()) | change
    with pytest.raises((KeyError, TypeError, ValueError)):
        terms.from_json(passed_on)
