"""Which build the tests meet: in `build/compiled`, all of the hot path is compiled."""

from __future__ import annotations

import re
from importlib.util import find_spec

from repl import build
from tests.daemon import ROOT
from tests.pair import Pair

LISTED = re.findall(r'"((?:repl|nbdserver)/[a-z_/]+)\.py"', (ROOT / "setup.py").read_text())


def expected_build() -> str:
    in_copy = ROOT.parts[-2:] == ("build", "compiled")
    return build.COMPILED if in_copy else build.INTERPRETED


def test_every_listed_module_is_of_the_expected_build() -> None:
    assert len(LISTED) > 20
    suffix = {build.COMPILED: ".so", build.INTERPRETED: ".py"}[expected_build()]
    for name in LISTED:
        spec = find_spec(name.replace("/", "."))
        assert spec is not None, f"setup.py lists {name}, which is not there"
        assert str(spec.origin).endswith(suffix), spec.origin
    assert build.kind() == expected_build()


def test_daemons_of_the_tests_run_the_expected_build() -> None:
    with Pair.make() as pair:
        pair.alpha.start()
        assert f"({expected_build()})" in pair.alpha.ctl_ok("version")
