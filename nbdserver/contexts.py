"""Metadata contexts by name: which there are, which a client's queries mean. Pure.

`base:allocation` is the protocol's own. Everybody else's names begin with `x-`; here that is for
whoever builds an export to choose. What a context says of a block is the backend's.

Spec: proto.md, "Metadata querying", "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BASE_ALLOCATION = "base:allocation"


def listed(available: Sequence[str], queries: Sequence[str]) -> list[str]:
    """The contexts that LIST answers: all without a query, else those that one of them means.

    A query that ends with a colon ("base:", "x-repl:", "x-repl:out-of-sync:") means everything
    below it. Unknown ones mean nothing.
    """
    if not queries:
        return list(available)
    return [name for name in available if any(_means(query, name) for query in queries)]


def selected(available: Sequence[str], queries: Iterable[str]) -> list[str]:
    """The contexts that SET selects: those named in full, each once, as `available` orders them."""
    asked = frozenset(queries)
    return [name for name in available if name in asked]


def _means(query: str, name: str) -> bool:
    return query == name or (query.endswith(":") and name.startswith(query))
