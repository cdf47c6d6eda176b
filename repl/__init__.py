"""repl: a replicated block device for Linux that needs no kernel module.

The name is short for *replication*. The map of the packages is in README.md; start with
`repl/core/README.md`.
"""

__version__ = "0.1.0"
