"""One target without coverage: mutations of what is known, one after another, from a seed.

For machines on which atheris cannot be installed. It finds what is near to good inputs, at the full
speed of the target, and nothing that needs several steps of discovery.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz.grammar import mutated
from tests.fuzz.targets import TARGETS, Target

REPORT_S: Final = 10.0
#: An input is changed this often in a row before another one is begun with.
STEPS_MAX: Final = 6


def fuzz(target: Target, begin: Sequence[bytes], *, duration_s: float, seed: int) -> int:
    """Run inputs until the time is over; returns how many. What one raises is raised, with it."""
    chance, grammar, run = random.Random(seed), target.grammar(), target.run
    begun_s = shown_s = time.monotonic()
    count = 0
    while (now_s := time.monotonic()) < begun_s + duration_s:
        data = chance.choice(begin)
        for _ in range(chance.randint(1, STEPS_MAX)):
            data = mutated(data, grammar, chance)[: target.input_bytes_max]
        try:
            run(data)
        except BaseException as error:
            error.add_note(data.hex())
            raise
        count += 1
        if now_s > shown_s + REPORT_S:
            shown_s = now_s
            _say(count, now_s - begun_s)
    _say(count, duration_s)
    return count


def _say(count: int, seconds: float) -> None:
    """A line of the form that `__main__` reads from the other engine too."""
    rate = int(count / max(seconds, 0.001))
    print(f"#{count}\tPULSE cov: 0 ft: 0 corp: 0 exec/s: {rate}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """`python -m tests.fuzz.unguided TARGET SECONDS SEED FOLDER [FOLDER …]`."""
    name, duration_s, seed, *folders = arguments
    target = TARGETS[name]
    # What is logged of thousands of bad clients would only hide the statistics.
    logging.disable()
    kept = [path.read_bytes() for each in folders for path in sorted(Path(each).glob("*"))]
    try:
        fuzz(target, [*target.seeds(), *kept], duration_s=float(duration_s), seed=int(seed))
    except Exception as error:
        data = bytes.fromhex(error.__notes__[-1])
        Path(folders[0], f"failed-{len(data)}-{seed}").write_bytes(data)
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
