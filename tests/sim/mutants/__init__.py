"""Deliberate bugs that the simulator must find: the checkers have teeth (design §9)."""
