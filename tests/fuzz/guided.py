"""One target under atheris, Google's coverage-guided fuzzer for Python: a process of its own.

atheris instruments the bytecode of what is imported inside its context and drives libFuzzer, which
owns this process from then on: its statistics go to stderr, and it writes an input that fails into
the folder it was given and ends with a status other than 0. Inputs are changed by libFuzzer's own
mutations and, more often, by those that know the target's messages.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz.grammar import mutated
from tests.fuzz.targets import TARGETS, Target

#: One input that takes longer, or more memory, is a finding too.
INPUT_TIMEOUT_S: Final = 60
MEMORY_MIB_MAX: Final = 2048
#: How often the target's own mutations are used instead of libFuzzer's.
STRUCTURED_SHARE: Final = 0.75


def import_instrumented(target: Target) -> None:
    """Import the target's packages, and only them, with counters in their bytecode.

    To be called before anything else of the target is touched: what was imported already stays
    without counters.
    """
    import atheris

    with atheris.instrument_imports(include=list(target.instrumented)):
        for name in target.instrumented:
            package = importlib.import_module(name)
            for found in pkgutil.iter_modules(getattr(package, "__path__", ())):
                if found.name != "__main__":
                    importlib.import_module(f"{name}.{found.name}")


def fuzz(target: Target, folders: Sequence[str], *, duration_s: int, seed: int) -> None:
    """Run the target until the time is over or an input fails; does not return.

    `folders` are the one that new inputs and failures are written to, and others to begin with.
    """
    import atheris

    run, grammar = target.run, target.grammar()

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() > STRUCTURED_SHARE:
            changed: bytes = atheris.Mutate(data, size_max)
            return changed
        return mutated(data, grammar, chance)[:size_max]

    options = [
        f"-max_total_time={duration_s}",
        f"-seed={seed}",
        f"-max_len={target.input_bytes_max}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={folders[0]}{os.sep}failed-",
        "-print_final_stats=1",
        "-report_slow_units=30",
    ]
    atheris.Setup([sys.argv[0], *options, *folders], run, custom_mutator=mutate)
    atheris.Fuzz()


def main(arguments: Sequence[str]) -> None:
    """`python -m tests.fuzz.guided TARGET SECONDS SEED FOLDER [FOLDER …]`."""
    name, duration_s, seed, *folders = arguments
    target = TARGETS[name]
    import_instrumented(target)
    # What is logged of thousands of bad clients would only hide the statistics.
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as seeds:
        for number, data in enumerate(target.seeds()):
            (Path(seeds) / str(number)).write_bytes(data)
        fuzz(target, [*folders, seeds], duration_s=int(duration_s), seed=int(seed))


if __name__ == "__main__":
    main(sys.argv[1:])
