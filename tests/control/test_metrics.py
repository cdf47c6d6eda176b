"""Metrics: names, values from the last known status, and a scrape over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from nbdserver.counters import End, HandshakeCounters, TransmissionCounters
from repl.control import metrics
from repl.control.metrics import (
    CONNECTION_STATES,
    DISK_STATES,
    ROLES,
    MetricsServer,
    VolumeCollector,
)
from repl.control.nbd_metrics import CONNECTION_ENDS, HANDSHAKE_OUTCOMES
from repl.control.schema import JsonObject
from repl.node.listeners import listen_tcp
from repl.node.volume_status import unknown_volume
from tests.control.test_server import RecordingBackend, run
from tests.daemon import PORTS

R0: JsonObject = {
    "name": "r0",
    "size_bytes": 1 << 30,
    "role": "primary",
    "disk_state": "up-to-date",
    "serving": True,
    "clients": 3,
    "intent_bytes": 5 << 20,
    "problem": None,
    "peers": [{"name": "beta", "connection_state": "connecting", "out_of_sync_bytes": 8192}],
    "nbd": dataclasses.asdict(TransmissionCounters(requests=70, bytes_read=4096, stalled=2))
    | {"over_limit": 5, "bytes_held": 1 << 20},
}
#: A frozen volume with a copy that is paused, limited and slow.
R2: JsonObject = R0 | {
    "name": "r2",
    "frozen": True,
    "alone": {"peer": "beta", "for_s": 3.0},
    "frozen_s_total": 12.5,
    "worker_starts_total": 2,
    "resync_order": {"paused": True, "rate_limit_bytes_per_s": 5000, "by": "", "since_s": 1},
    "peers": [
        {
            "name": "beta",
            "connection_state": "connected",
            "out_of_sync_bytes": 8192,
            "slow_s": 2.0,
            "round_trip_s": 0.002,
            "resync": {"remaining_bytes": 4096, "stalled": "paused by an operator on alpha"},
            "resync_sent_bytes_total": 77,
        }
    ],
}
EVENTS: JsonObject = {
    "last_number": 9,
    "info": 5,
    "warning": 3,
    "error": 1,
    "suppressed": 4,
    "unstored": 2,
    "followers": 1,
    "followers_dropped": 6,
}


class StatusBackend(RecordingBackend):
    def last_status(self) -> JsonObject:
        return {
            "node": "alpha",
            "version": "9.9",
            "build": "interpreted",
            "nbd": dataclasses.asdict(HandshakeCounters(accepted=9, timed_out=4))
            | {"handshakes": 1, "held": 0, "tls_proxies": 2},
            "events": EVENTS,
            "volumes": [
                R0,
                unknown_volume("r1", 4096, ()) | {"problem": {"code": "UNEXPECTED"}},
                R2,
            ],
        }


async def scraped() -> dict[tuple[str, ...], float]:
    """Return (name, sorted label values…) -> value, as a scrape of a running server gives them."""
    port = PORTS.take()
    listener = listen_tcp("127.0.0.1", port, "[node] metrics")
    server = MetricsServer(listener.sock, StatusBackend())
    await server.start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = await answer.text()
    finally:
        await server.close()
        listener.close()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_scrape_shows_each_volume_and_peer(loop: Any) -> None:
    async def scenario() -> None:
        found = await scraped()
        assert found[("repl_build_info", "interpreted", "9.9")] == 1
        assert found[("repl_volume_size_bytes", "r0")] == 1 << 30
        assert found[("repl_volume_serving", "r0")] == 1
        assert found[("repl_volume_serving", "r1")] == 0
        assert found[("repl_volume_clients", "r0")] == 3
        assert found[("repl_volume_intent_bytes", "r0")] == 5 << 20
        assert found[("repl_volume_intent_bytes", "r1")] == 0
        assert found[("repl_volume_problem", "r0")] == 0
        assert found[("repl_volume_problem", "r1")] == 1
        assert found[("repl_peer_out_of_sync_bytes", "beta", "r0")] == 8192
        assert found[("repl_volume_role", "primary", "r0")] == 1
        assert found[("repl_volume_role", "secondary", "r0")] == 0
        assert all(key[0].startswith("repl_") for key in found)

    run(scenario, loop)


def test_states_are_sets_of_which_exactly_one_is_true() -> None:
    async def scenario() -> None:
        found = await scraped()
        for name, states, labels in (
            ("repl_volume_role", ROLES, ("r0",)),
            ("repl_volume_disk_state", DISK_STATES, ("r0",)),
        ):
            values = [found[(name, state, *labels)] for state in states]
            assert sorted(values) == [0.0] * (len(states) - 1) + [1.0]
        connection = [
            found[("repl_peer_connection_state", state, "beta", "r0")]
            for state in CONNECTION_STATES
        ]
        assert connection == [0, 1, 0, 0, 0]

    run(scenario)


def test_scrape_shows_what_nbd_clients_did() -> None:
    async def scenario() -> None:
        found = await scraped()
        assert found[("repl_nbd_accepted_total",)] == 9
        assert found[("repl_nbd_handshakes_total", "timed_out")] == 4
        assert found[("repl_nbd_handshakes_in_progress",)] == 1
        assert found[("repl_nbd_tls_proxies",)] == 2
        assert found[("repl_volume_nbd_requests_total", "r0")] == 70
        assert found[("repl_volume_nbd_bytes_read_total", "r0")] == 4096
        assert found[("repl_volume_nbd_connections_ended_total", "stalled", "r0")] == 2
        assert found[("repl_volume_nbd_connections_ended_total", "over_limit", "r0")] == 5
        assert found[("repl_volume_nbd_bytes_held", "r0")] == 1 << 20
        assert found[("repl_nbd_limits_met_total", "handshakes")] == 0
        assert found[("repl_volume_nbd_limits_met_total", "unsent_bytes", "r0")] == 0
        # A volume whose worker has not spoken has counted nothing.
        assert ("repl_volume_nbd_requests_total", "r1") not in found

    run(scenario)


def test_every_metric_is_documented_and_no_other() -> None:
    collected = VolumeCollector(StatusBackend()).collect()
    rows = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            ", ".join(sorted({key for s in family.samples for key in s.labels})) or "–",
            family.documentation,
        )
        for family in collected
    }
    text = (Path(metrics.__file__).parent / "README.md").read_text()
    assert set(re.findall(r"^\| `(repl_[a-z_]+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)) == rows


def test_orders_waits_and_copies_are_shown() -> None:
    async def scenario() -> None:
        found = await scraped()
        for volume, values in (("r0", (0, 0, 0, 0, 0, 0)), ("r2", (1, 1, 12.5, 1, 5000, 2))):
            names = (
                "repl_volume_frozen",
                "repl_volume_waits_for_permit",
                "repl_volume_waited_for_permit_seconds_total",
                "repl_resync_paused",
                "repl_resync_rate_limit_bytes_per_second",
                "repl_worker_starts_total",
            )
            assert tuple(found[(name, volume)] for name in names) == values
        assert found[("repl_peer_slow_seconds", "beta", "r0")] == 0
        assert found[("repl_peer_slow_seconds", "beta", "r2")] == 2
        assert ("repl_peer_round_trip_seconds", "beta", "r0") not in found, "nobody knows it"
        assert found[("repl_peer_round_trip_seconds", "beta", "r2")] == 0.002
        assert found[("repl_peer_resync_remaining_bytes", "beta", "r0")] == 0
        assert found[("repl_peer_resync_remaining_bytes", "beta", "r2")] == 4096
        assert found[("repl_peer_resync_stalled", "beta", "r2")] == 1
        assert found[("repl_peer_resync_sent_bytes_total", "beta", "r2")] == 77

    run(scenario)


def test_every_way_to_end_has_its_metric() -> None:
    assert set(CONNECTION_ENDS) == {end.value for end in End} | {"over_limit"}
    counted = {field.name for field in dataclasses.fields(HandshakeCounters)}
    no_outcomes = {"accepted", "encrypted", "limits", "tls_proxies_lost"}
    assert set(HANDSHAKE_OUTCOMES) == counted - no_outcomes


def test_events_are_counted_and_so_are_those_that_nobody_got() -> None:
    async def scenario() -> None:
        found = await scraped()
        by_severity = [found[("repl_events_total", s)] for s in ("info", "warning", "error")]
        assert by_severity == [5, 3, 1]
        assert found[("repl_events_suppressed_total",)] == 4
        assert found[("repl_events_unstored_total",)] == 2
        assert found[("repl_event_followers",)] == 1
        assert found[("repl_event_followers_dropped_total",)] == 6

    run(scenario)
