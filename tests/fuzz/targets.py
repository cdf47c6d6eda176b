"""The fuzz targets by name: what is run, how its inputs are made, and what is instrumented."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from tests.fuzz.grammar import Grammar

HERE: Final = Path(__file__).resolve().parent
#: Inputs that reach what others do not, and inputs that once failed: both are replayed by tests.
CORPUS: Final = HERE / "corpus"
REGRESSIONS: Final = HERE / "regressions"


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed. Its module is imported only when it is used."""

    name: str
    module: str
    #: Packages whose coverage guides the fuzzer.
    instrumented: tuple[str, ...]
    #: No input is made longer than this.
    input_bytes_max: int = 16 << 10

    def _module(self) -> ModuleType:
        return importlib.import_module(f"tests.fuzz.{self.module}")

    @property
    def run(self) -> Callable[[bytes], None]:
        """Run one input; anything that is raised is a finding."""
        found: Callable[[bytes], None] = self._module().run
        return found

    def grammar(self) -> Grammar:
        """How its inputs are changed."""
        found: Grammar = self._module().grammar()
        return found

    def seeds(self) -> Sequence[bytes]:
        """Good inputs to begin with."""
        found: Sequence[bytes] = self._module().seeds()
        return found

    def kept(self) -> list[Path]:
        """Its inputs in the repository."""
        folders = (REGRESSIONS / self.name, CORPUS / self.name)
        return [path for folder in folders for path in sorted(folder.glob("*.bin"))]


TARGETS: Final = {
    target.name: target
    for target in (
        Target("nbd-handshake", "handshake", ("nbdserver",)),
        Target("nbd-transmission", "transmission", ("nbdserver",), 32 << 10),
        Target("peer-stream", "peer_stream", ("repl.core.wire", "repl.link.connection")),
        Target(
            "peer-hello",
            "peer_hello",
            (
                *("repl.core.wire", "repl.core.hello", "repl.core.handshake", "repl.core.lineage"),
                *("repl.link.preamble", "repl.link.tls"),
            ),
        ),
        Target("peer-session", "peer_session", ("repl.core",)),
        Target("metadata-file", "metadata_file", ("repl.store", "repl.core.blockmap")),
        Target("control-request", "control", ("repl.control.schema",)),
    )
}
