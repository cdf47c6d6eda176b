"""`python -m tests.torture`: two real nodes under random faults, judged by the ledger."""

from __future__ import annotations

import sys

from tests.torture.run import main

sys.exit(main())
