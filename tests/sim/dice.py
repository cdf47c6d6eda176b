"""Randomness by purpose: each concern draws from a generator of its own, all made of one seed.

So a scenario that is made smaller (a fault dropped, a client less) still sees much the same delays
and the same losses, which is what makes shrinking work.
"""

from __future__ import annotations

import random


class Dice:
    """One generator for each purpose."""

    __slots__ = ("clients", "disks", "ids", "link", "plan", "world")

    def __init__(self, seed: int) -> None:
        #: The configuration and the steps of the scenario, drawn before it begins.
        self.plan = random.Random(f"{seed} plan")
        #: What clients ask for, and when.
        self.clients = random.Random(f"{seed} clients")
        #: Delays of the disks, and what a loss of power takes.
        self.disks = random.Random(f"{seed} disks")
        #: Delays of the link, where its segments are split, and how much of a broken one arrives.
        self.link = random.Random(f"{seed} link")
        #: Node ids, generation ids, tokens.
        self.ids = random.Random(f"{seed} ids")
        #: Everything else that happens by chance while the world runs.
        self.world = random.Random(f"{seed} world")
