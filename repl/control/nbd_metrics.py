"""The metrics of NBD clients, from counters that the fronts and workers show in the status.

`nbd` of the node counts handshakes, `nbd` of a volume its clients in transmission; both are absent
as long as nothing was counted. A worker that is restarted begins at zero again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from repl.control.schema import JsonObject

#: How a handshake or a connection ended, as their counters are called.
HANDSHAKE_OUTCOMES: Final = (
    "agreed",
    "ended",
    "dropped",
    "timed_out",
    "over_limit",
    "tls_refused",
)
CONNECTION_ENDS: Final = (
    "finished",
    "hung_up",
    "violations",
    "stalled",
    "idle",
    "file_failures",
    "abandoned",
    "bugs",
    "over_limit",
)
_VOLUME_COUNTERS: Final = (
    ("requests", "Requests of NBD clients."),
    ("errors", "Requests of NBD clients that were answered with an error."),
    ("bytes_read", "Bytes that NBD clients asked to read."),
    ("bytes_written", "Bytes that NBD clients sent to be written."),
    ("limit_waits", "Turns after which an NBD client was not read because of its limits."),
)


def nbd_families(status: JsonObject) -> Iterator[Metric]:
    """The families of the node and of its volumes."""
    node: JsonObject = status.get("nbd", {})
    if "accepted" in node:
        yield from _node_families(node)
    volumes = [volume for volume in status["volumes"] if volume.get("nbd")]
    yield from _volume_families(volumes)


def _node_families(counters: JsonObject) -> Iterator[Metric]:
    accepted = CounterMetricFamily("repl_nbd_accepted", "NBD connections accepted.")
    accepted.add_metric([], counters["accepted"])
    yield accepted
    outcomes = CounterMetricFamily(
        "repl_nbd_handshakes", "NBD handshakes by how they ended.", labels=["outcome"]
    )
    for outcome in HANDSHAKE_OUTCOMES:
        outcomes.add_metric([outcome], counters[outcome])
    yield outcomes
    met = CounterMetricFamily(
        "repl_nbd_limits_met",
        "NBD clients that met a limit of the handshake, or of all clients, by its name.",
        labels=["limit"],
    )
    for limit, count in counters["limits"].items():
        met.add_metric([limit], count)
    yield met
    for name, text, key in (
        ("repl_nbd_encrypted", "NBD clients that got through a TLS handshake.", "encrypted"),
        (
            "repl_nbd_tls_proxies_lost",
            "TLS proxy processes that ended by themselves, with their clients.",
            "tls_proxies_lost",
        ),
    ):
        counter = CounterMetricFamily(name, text)
        counter.add_metric([], counters[key])
        yield counter
    for name, text, key in (
        ("repl_nbd_tls_proxies", "TLS proxy processes that run.", "tls_proxies"),
        ("repl_nbd_handshakes_in_progress", "NBD clients in their handshake.", "handshakes"),
        ("repl_nbd_held", "NBD clients that wait until their export may be served.", "held"),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], counters[key])
        yield gauge


def _volume_families(volumes: Iterable[JsonObject]) -> Iterator[Metric]:
    volumes = list(volumes)
    for key, text in _VOLUME_COUNTERS:
        family = CounterMetricFamily(f"repl_volume_nbd_{key}", text, labels=["volume"])
        for volume in volumes:
            family.add_metric([volume["name"]], volume["nbd"][key])
        yield family
    met = CounterMetricFamily(
        "repl_volume_nbd_limits_met",
        "Waits for a limit on NBD clients, or ends by it, by its name.",
        labels=["volume", "limit"],
    )
    ends = CounterMetricFamily(
        "repl_volume_nbd_connections_ended",
        "NBD connections by how they ended.",
        labels=["volume", "end"],
    )
    held = GaugeMetricFamily(
        "repl_volume_nbd_bytes_held",
        "Payloads, reads and unsent replies of NBD clients, as they count against total_bytes.",
        labels=["volume"],
    )
    for volume in volumes:
        for limit, count in volume["nbd"]["limits"].items():
            met.add_metric([volume["name"], limit], count)
        for end in CONNECTION_ENDS:
            ends.add_metric([volume["name"], end], volume["nbd"][end])
        held.add_metric([volume["name"]], volume["nbd"]["bytes_held"])
    yield met
    yield ends
    yield held
