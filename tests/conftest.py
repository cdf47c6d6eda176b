"""What every test shares: libnbd, markers by folder, and the police of skipped tests.

Under CI (environment `CI=true`) a skipped or expected-to-fail test makes the run red unless
`tests/allowed_skips.txt` lists it and the probe named there confirms its cause now. Only the
process that collects all reports judges, so that it works the same with pytest-xdist.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import libnbd
from tests.probes import PROBES

# From here on `import nbd` finds Debian's binding. Where it is missing, tests that need it say so.
with contextlib.suppress(libnbd.LibnbdMissing):
    libnbd.load()

# How long an example takes, or its making, says how busy the machine is and nothing of the product.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

TESTS = Path(__file__).resolve().parent
ALLOWED_SKIPS = TESTS / "allowed_skips.txt"
MARKED_FOLDERS = ("e2e", "interop")


def allowed_skips() -> dict[str, str]:
    """Return node id → name of the probe, as the file lists them."""
    allowed = {}
    for line in ALLOWED_SKIPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            node_id, probe = line.split()
            allowed[node_id] = probe
    return allowed


def under_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


class SkipPolice:
    """Collects skips and says at the end which of them have no proven cause."""

    def __init__(self) -> None:
        #: node id → reason given
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = _reason(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid] = _reason(report)

    def unproven(self) -> list[str]:
        """Return one sentence for each skip that nothing excuses."""
        allowed = allowed_skips()
        sentences = []
        for node_id, reason in sorted(self.skipped.items()):
            probe = allowed.get(node_id)
            if probe is None:
                sentences.append(f"{node_id} was skipped and is not allowed to be: {reason}")
            elif probe not in PROBES:
                sentences.append(f"{node_id} names the unknown probe {probe}")
            elif not PROBES[probe]():
                sentences.append(f"{node_id} was skipped, but {probe} finds no cause: {reason}")
        return sentences

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if under_ci() and self.unproven() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not under_ci():
            return
        for sentence in self.unproven():
            terminalreporter.write_line(f"SKIP NOT ALLOWED: {sentence}", red=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    expected = getattr(report, "wasxfail", None)
    if expected is not None:
        return f"expected to fail: {expected}"
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipPolice(), "skip-police")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)
