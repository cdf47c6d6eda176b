"""`python -m tests.sim`: run one seed or a range; a failing one prints how to replay it."""

from __future__ import annotations

import sys

from tests.sim.run import main

sys.exit(main())
