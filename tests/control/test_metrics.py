"""Metrics: names, values from the last known status, and a scrape over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import aiohttp
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from nbdserver.counters import End, HandshakeCounters, TransmissionCounters
from repl.control.metrics import CONNECTION_STATES, DISK_STATES, ROLES, MetricsServer
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
    "problem": None,
    "peers": [{"name": "beta", "connection_state": "connecting", "out_of_sync_bytes": 8192}],
    "nbd": dataclasses.asdict(TransmissionCounters(requests=70, bytes_read=4096, stalled=2))
    | {"over_limit": 5, "bytes_held": 1 << 20},
}


class StatusBackend(RecordingBackend):
    def last_status(self) -> JsonObject:
        return {
            "node": "alpha",
            "version": "9.9",
            "nbd": dataclasses.asdict(HandshakeCounters(accepted=9, timed_out=4))
            | {"handshakes": 1, "held": 0},
            "volumes": [R0, unknown_volume("r1", 4096, ()) | {"problem": {"code": "UNEXPECTED"}}],
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
        assert found[("repl_build_info", "9.9")] == 1
        assert found[("repl_volume_size_bytes", "r0")] == 1 << 30
        assert found[("repl_volume_serving", "r0")] == 1
        assert found[("repl_volume_serving", "r1")] == 0
        assert found[("repl_volume_clients", "r0")] == 3
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
        assert found[("repl_volume_nbd_requests_total", "r0")] == 70
        assert found[("repl_volume_nbd_bytes_read_total", "r0")] == 4096
        assert found[("repl_volume_nbd_connections_ended_total", "stalled", "r0")] == 2
        assert found[("repl_volume_nbd_connections_ended_total", "over_limit", "r0")] == 5
        assert found[("repl_volume_nbd_bytes_held", "r0")] == 1 << 20
        # A volume whose worker has not spoken has counted nothing.
        assert ("repl_volume_nbd_requests_total", "r1") not in found

    run(scenario)


def test_every_way_to_end_has_its_metric() -> None:
    assert set(CONNECTION_ENDS) == {end.value for end in End} | {"over_limit"}
    counted = {field.name for field in dataclasses.fields(HandshakeCounters)}
    assert set(HANDSHAKE_OUTCOMES) == counted - {"accepted"}
