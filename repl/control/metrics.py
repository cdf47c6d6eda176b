"""Prometheus metrics over what the volumes said last; a scrape asks nobody and delays nobody.

Owns the names (prefix `repl_`, base units, states as 0/1 sets with few labels) and the small HTTP
server for `GET /metrics` on `[node] metrics`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from repl.control.nbd_metrics import nbd_families
from repl.control.schema import Backend, JsonObject
from repl.events import SEVERITIES

ROLES: Final = ("primary", "secondary")
DISK_STATES: Final = (
    "diskless",
    "failed",
    "inconsistent",
    "outdated",
    "consistent",
    "up-to-date",
)
CONNECTION_STATES: Final = ("disconnected", "connecting", "connected", "split-brain", "refused")
CLOSE_TIMEOUT_S: Final = 1.0


class VolumeCollector(Collector):
    """Turns the last known status into metric families, anew for every scrape."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        status = self._backend.last_status()
        build = GaugeMetricFamily(
            "repl_build_info",
            "Always 1; of the hot path, `compiled` or `interpreted`.",
            labels=["build", "version"],
        )
        build.add_metric([status["build"], status["version"]], 1)
        yield build
        volumes: list[JsonObject] = status["volumes"]
        yield _states(
            "repl_volume_role", "Role of the volume on this node.", "role", ROLES, volumes
        )
        yield _states(
            "repl_volume_disk_state",
            "State of this node's copy.",
            "disk_state",
            DISK_STATES,
            volumes,
        )
        for name, text, key in (
            ("repl_volume_size_bytes", "Size of the volume.", "size_bytes"),
            ("repl_volume_serving", "1 while the export is served.", "serving"),
            ("repl_volume_clients", "Attached NBD clients.", "clients"),
            (
                "repl_volume_intent_bytes",
                "Bytes under write intents: what is compared after a crash.",
                "intent_bytes",
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=["volume"])
            for volume in volumes:
                family.add_metric([volume["name"]], volume.get(key) or 0)
            yield family
        problem = GaugeMetricFamily(
            "repl_volume_problem", "1 while the volume has a problem.", labels=["volume"]
        )
        for volume in volumes:
            problem.add_metric([volume["name"]], volume.get("problem") is not None)
        yield problem
        yield from _order_families(volumes)
        yield from _peer_families(volumes)
        if "events" in status:
            yield from _event_families(status["events"])
        yield from nbd_families(status)


def _states(
    name: str, text: str, label: str, states: Iterable[str], volumes: Iterable[JsonObject]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["volume", label])
    for volume in volumes:
        for state in states:
            family.add_metric([volume["name"], state], volume[label] == state)
    return family


def _peer_families(volumes: Iterable[JsonObject]) -> Iterator[Metric]:
    connection = GaugeMetricFamily(
        "repl_peer_connection_state",
        "State of the connection to the peer.",
        labels=["volume", "peer", "connection_state"],
    )
    out_of_sync = GaugeMetricFamily(
        "repl_peer_out_of_sync_bytes",
        "Bytes that the peer's copy lacks, as far as this node knows.",
        labels=["volume", "peer"],
    )
    slow = GaugeMetricFamily(
        "repl_peer_slow_seconds",
        "For how long the peer has owed an answer; 0 while that is nothing unusual.",
        labels=["volume", "peer"],
    )
    broken = CounterMetricFamily(
        "repl_peer_broken_connections",
        "Connections that ended because the peer's bytes were damaged or broke the protocol.",
        labels=["volume", "peer"],
    )
    for volume in volumes:
        for peer in volume["peers"]:
            labels = [volume["name"], peer["name"]]
            out_of_sync.add_metric(labels, peer["out_of_sync_bytes"])
            slow.add_metric(labels, peer.get("slow_s") or 0)
            broken.add_metric(labels, peer.get("broken_connections_total") or 0)
            for state in CONNECTION_STATES:
                connection.add_metric([*labels, state], peer["connection_state"] == state)
    yield connection
    yield out_of_sync
    yield slow
    yield broken
    yield from _copy_families(volumes)


def _copy_families(volumes: Iterable[JsonObject]) -> Iterator[Metric]:
    names = ["volume", "peer"]
    round_trip = GaugeMetricFamily(
        "repl_peer_round_trip_seconds", "How long the last ping took.", labels=names
    )
    remaining = GaugeMetricFamily(
        "repl_peer_resync_remaining_bytes",
        "Bytes that a copy in progress has still to look at; 0 without one.",
        labels=names,
    )
    stalled = GaugeMetricFamily(
        "repl_peer_resync_stalled",
        "1 while nothing of a copy moves; status says why.",
        labels=names,
    )
    sent = CounterMetricFamily(
        "repl_peer_resync_sent_bytes", "Bytes of copies and digests sent to the peer.", labels=names
    )
    for volume in volumes:
        for peer in volume["peers"]:
            labels, copy = [volume["name"], peer["name"]], peer.get("resync") or {}
            if peer.get("round_trip_s") is not None:
                round_trip.add_metric(labels, peer["round_trip_s"])
            remaining.add_metric(labels, copy.get("remaining_bytes", 0))
            stalled.add_metric(labels, bool(copy.get("stalled")))
            sent.add_metric(labels, peer.get("resync_sent_bytes_total", 0))
    yield from (round_trip, remaining, stalled, sent)


def _order_families(volumes: Iterable[JsonObject]) -> Iterator[Metric]:
    """What waits for, or was ordered by, an operator; and how often a worker was started."""
    frozen = GaugeMetricFamily(
        "repl_volume_frozen",
        "1 while requests wait instead of being carried out.",
        labels=["volume"],
    )
    waiting = GaugeMetricFamily(
        "repl_volume_waits_for_permit",
        "1 while nothing is acknowledged until an operator continues.",
        labels=["volume"],
    )
    waited = CounterMetricFamily(
        "repl_volume_waited_for_permit_seconds",
        "Time in which nothing was acknowledged for want of a permit.",
        labels=["volume"],
    )
    paused = GaugeMetricFamily(
        "repl_resync_paused", "1 while an operator pauses copies on this node.", labels=["volume"]
    )
    limit = GaugeMetricFamily(
        "repl_resync_rate_limit_bytes_per_second",
        "This node's limit of the rate of copies, 0 for none.",
        labels=["volume"],
    )
    starts = CounterMetricFamily(
        "repl_worker_starts", "Starts of the volume's worker process.", labels=["volume"]
    )
    for volume in volumes:
        labels, order = [volume["name"]], volume.get("resync_order") or {}
        frozen.add_metric(labels, volume.get("frozen") is True)
        waiting.add_metric(labels, volume.get("alone") is not None)
        waited.add_metric(labels, volume.get("frozen_s_total", 0))
        paused.add_metric(labels, order.get("paused") is True)
        limit.add_metric(labels, order.get("rate_limit_bytes_per_s", 0))
        starts.add_metric(labels, volume.get("worker_starts_total", 0))
    yield from (frozen, waiting, waited, paused, limit, starts)


def _event_families(counts: JsonObject) -> Iterator[Metric]:
    told = CounterMetricFamily("repl_events", "Events since repld started.", labels=["severity"])
    for severity in SEVERITIES:
        told.add_metric([severity], counts[severity])
    yield told
    for name, text, key in (
        ("repl_events_suppressed", "Events not taken up: too many of a kind.", "suppressed"),
        ("repl_events_unstored", "Events that could not be stored on disk.", "unstored"),
        (
            "repl_event_followers_dropped",
            "Followers whose stream ended because they were too slow.",
            "followers_dropped",
        ),
    ):
        yield CounterMetricFamily(name, text, value=counts[key])
    yield GaugeMetricFamily(
        "repl_event_followers", "Readers that follow the events.", value=counts["followers"]
    )


class MetricsServer:
    """Serves `GET /metrics` on a listening TCP socket, from `start` to `close`."""

    def __init__(self, sock: socket.socket, backend: Backend) -> None:
        self._sock = sock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(VolumeCollector(backend))
        application = web.Application()
        application.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        await self._runner.setup()
        assert self._runner.server is not None, "a runner that is set up has a server"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._runner.server, sock=self._sock)

    async def close(self) -> None:
        """Close the server. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
