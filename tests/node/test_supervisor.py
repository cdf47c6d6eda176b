"""The daemon as a whole: what it refuses to start on, how it stops, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from repl.addresses import Address
from repl.config import Config, NbdSettings
from repl.errors import ConfigInvalid, NoSuchThing, PermissionRefused, Refused, ReplError
from repl.node.event_ring import BURST_MAX
from repl.node.supervisor import Supervisor
from tests.daemon import PORTS
from tests.node.daemon_parts import (
    FAKE_WORKER,
    TIMES,
    alive,
    configuration,
    run,
    running,
    until,
    with_node,
)


async def refused(config: Config) -> ReplError:
    """Return the error with which a supervisor of `config` does not start."""
    supervisor = Supervisor(config, worker_command=FAKE_WORKER, worker_times=TIMES)
    with pytest.raises(ReplError) as failure:
        await supervisor.start()
    assert all(worker.starts == 0 for worker in supervisor.workers.values())
    return failure.value


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clean_stop_leaves_no_process_and_no_socket(tmp_path: Path, loop: str) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path, ("r0", "r1", "r2"))
        async with running(config) as supervisor:
            pids = [worker.pid or 0 for worker in supervisor.workers.values()]
            assert all(map(alive, pids))
        assert not any(map(alive, pids))
        state = Path(config.node.state_dir)
        assert {path.name for path in state.glob("*.stopped")} == {
            "r0.stopped",
            "r1.stopped",
            "r2.stopped",
        }, "each worker was asked to stop and did"
        assert not Path(config.node.control).exists()
        assert not (tmp_path / "nbd.sock").exists()
        async with running(config) as again:
            assert len((await again.status())["volumes"]) == 3

    run(scenario, loop)


def touched(folder: Path) -> dict[Path, int]:
    """When each file was last written; the first daemon's own events come when its thread runs."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("events.")
    }


def test_second_daemon_on_a_state_dir_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path / "one")) as first:
            state = tmp_path / "one" / "state"
            before = touched(tmp_path / "one")
            second = with_node(configuration(tmp_path / "two"), state_dir=str(state))
            error = await refused(second)
            assert isinstance(error, Refused)
            assert error.code == "STATE_DIR_IN_USE"
            assert str(os.getpid()) in error.why
            assert not (tmp_path / "two").exists()
            assert touched(tmp_path / "one") == before
            assert first.workers["r0"].starts == 1

    run(scenario)


def test_busy_control_socket_is_refused_and_its_owner_keeps_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)):
            control = str(tmp_path / "repld.sock")
            error = await refused(
                with_node(configuration(tmp_path), state_dir=str(tmp_path / "two"))
            )
            assert (error.code, error.exit_status) == ("ADDRESS_IN_USE", 5)
            assert control in error.what
            connector = aiohttp.UnixConnector(control)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://repld/v1/version") as answer,
            ):
                assert answer.status == 200

    run(scenario)


def test_busy_port_is_refused_with_its_address_before_anything_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = PORTS.take()
        with socket.create_server(("127.0.0.1", port)):
            for key in ("listen", "metrics"):
                config = with_node(configuration(tmp_path), **{key: Address("127.0.0.1", port)})
                error = await refused(config)
                assert (error.code, error.exit_status) == ("ADDRESS_IN_USE", 5)
                assert f"127.0.0.1:{port}" in error.what
                assert f"[node] {key}" in error.why
            nbd = replace(
                configuration(tmp_path), nbd=NbdSettings(None, Address("127.0.0.1", port), "refuse")
            )
            assert "[nbd] listen" in (await refused(nbd)).why
        assert not (tmp_path / "repld.sock").exists()
        async with running(configuration(tmp_path)):
            pass

    run(scenario)


def test_sockets_get_their_modes_and_stale_ones_are_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(config.node.control)
        async with running(config):
            for path, mode in ((config.node.control, 0o600), (tmp_path / "nbd.sock", 0o660)):
                found = os.stat(path).st_mode
                assert stat.S_ISSOCK(found)
                assert stat.S_IMODE(found) == mode
            assert stat.S_IMODE(os.stat(config.node.state_dir).st_mode) == 0o700

    run(scenario)


def test_file_in_place_of_a_socket_is_never_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path)
        Path(config.node.control).write_text("mine")
        error = await refused(config)
        assert isinstance(error, ConfigInvalid)
        assert Path(config.node.control).read_text() == "mine"

    run(scenario)


def test_unusable_state_dir_names_it_and_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "file").write_text("")
        error = await refused(
            with_node(configuration(tmp_path), state_dir=str(tmp_path / "file" / "state"))
        )
        assert (type(error), error.exit_status) == (ConfigInvalid, 8)
        # Nobody, not even root, makes a folder in the root of sysfs.
        error = await refused(with_node(configuration(tmp_path), state_dir="/sys/repld-test"))
        assert (type(error), error.exit_status) == (PermissionRefused, 9)
        assert "/sys/repld-test" in error.what

    run(scenario)


def test_unknown_volumes_and_peers_are_refused_without_asking_a_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with pytest.raises(NoSuchThing) as failure:
                await supervisor.request("r9", "promote", {}, 1.0)
            assert failure.value.code == "NO_SUCH_VOLUME"
            for args in ({"peer": "gamma"}, {"peer_dead": "gamma"}):
                with pytest.raises(NoSuchThing) as failure:
                    await supervisor.request("r0", "connect", args, 1.0)
                assert failure.value.code == "NO_SUCH_PEER"

    run(scenario)


def test_worker_gets_its_settings_and_its_events_reach_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        with capture_logs() as lines:
            config = configuration(tmp_path)
            async with running(config) as supervisor:
                worker = supervisor.workers["r0"]
                settings = await worker.request("settings", {}, 10.0)
                assert settings["volume"] == {
                    "name": "r0",
                    "size_bytes": 1 << 20,
                    "backing": str(tmp_path / "r0.img"),
                    "preallocate": False,
                    "alone": "continue",
                    "resync_rate_bytes_max": 0,
                }
                assert settings["peer"] == {
                    "name": "beta",
                    "addresses": ["127.0.0.1:7799"],
                    "fingerprint": "",
                }
                assert settings["listen_peer_port"] == config.node.listen.port  # type: ignore[union-attr]
                assert settings["timeouts"]["peer_timeout_s"] == 5.0
                event = {"time_s": 1.5, "volume": "r0", "level": "warning", "text": "It is slow."}
                await worker.request("event", event, 10.0)
        said = [line for line in lines if line["event"] == "It is slow."]
        assert [(line["log_level"], line["volume"], line["time_s"]) for line in said] == [
            ("warning", "r0", 1.5)
        ]

    run(scenario)


def codes(supervisor: Supervisor, volume: str | None = None) -> list[str]:
    return [event["code"] for event in supervisor.events.after(0, volume, 1000).events]


def test_events_of_workers_outlive_them_and_their_ends_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            event = {
                "time_s": 1.5,
                "level": "warning",
                "text": "beta is slow",
                "code": "PEER_SLOW",
                "fields": {"peer": "beta"},
            }
            await worker.request("event", event, 10.0)
            with pytest.raises(ReplError):
                await worker.request("exit", {}, 10.0)
            await until(worker, lambda: worker.answers and worker.starts == 2)
            assert codes(supervisor, "r0") == [
                "WORKER_STARTED",
                "PEER_SLOW",
                "WORKER_ENDED",
                "WORKER_STARTED",
            ]
            slow = supervisor.events.after(0, "r0", 1000).events[1]
            assert (slow["time_s"], slow["fields"]) == (1.5, {"peer": "beta"})
            counts = (await supervisor.status())["events"]
            assert (counts["warning"], counts["error"], counts["followers"]) == (1, 1, 0)

    run(scenario)


def test_events_of_an_earlier_daemon_can_be_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path, ())
        async with running(config) as first:
            assert codes(first) == ["DAEMON_STARTED"]
        async with running(config) as second:
            assert codes(second) == ["DAEMON_STARTED", "DAEMON_STOPPED", "DAEMON_STARTED"]
            assert second.events.last_number == 3

    run(scenario)


def test_a_flood_of_one_event_reaches_neither_the_ring_nor_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        with capture_logs() as lines:
            async with running(configuration(tmp_path)) as supervisor:
                worker = supervisor.workers["r0"]
                event = {"level": "warning", "text": "slow", "code": "PEER_SLOW", "fields": {}}
                for _ in range(60):
                    await worker.request("event", event, 10.0)
                assert codes(supervisor).count("PEER_SLOW") == BURST_MAX
        assert len([line for line in lines if line["event"] == "slow"]) == BURST_MAX

    run(scenario)


def test_a_pause_is_given_to_the_next_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            await supervisor.request("r0", "resync-pause", {"by": "uid 0"}, 10.0)
            with pytest.raises(ReplError):
                await worker.request("exit", {}, 10.0)
            await until(worker, lambda: worker.answers and worker.starts == 2)
            settings = await worker.request("settings", {}, 10.0)
            assert settings["volume"]["resync_order"] == {"paused": True, "by": "uid 0"}

    run(scenario)


def test_a_source_that_is_no_peer_is_refused_and_this_node_is_for_the_worker(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with pytest.raises(NoSuchThing) as failure:
                await supervisor.request("r0", "resync-full", {"source": "gamma"}, 1.0)
            assert failure.value.code == "NO_SUCH_PEER"
            for source in ("alpha", "beta"):
                await supervisor.request("r0", "resync-full", {"source": source}, 10.0)

    run(scenario)


def test_daemon_without_volumes_starts_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path, ())) as supervisor:
            status = await supervisor.status()
            assert status["node"] == "alpha"
            assert status["volumes"] == []

    run(scenario)


def test_status_says_where_the_exports_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path, ())
        async with running(config) as supervisor:
            nbd = (await supervisor.status())["nbd"]
            assert (nbd["socket"], nbd["listen"]) == (str(tmp_path / "nbd.sock"), None)

    run(scenario)


def test_control_api_answers_while_a_worker_hangs(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = replace(TIMES, silent_s=600.0, stop_s=0.3)
        async with running(configuration(tmp_path, ("r0", "r1")), times) as supervisor:
            hung = supervisor.workers["r0"]
            assert hung.pid is not None
            os.kill(hung.pid, signal.SIGSTOP)
            connector = aiohttp.UnixConnector(str(tmp_path / "repld.sock"))
            async with aiohttp.ClientSession("http://repld", connector=connector) as session:
                stuck = asyncio.create_task(session.post("/v1/volumes/r0/demote"))
                async with session.post("/v1/volumes/r1/promote", json={}) as answer:
                    assert (answer.status, await answer.json()) == (200, {})
                for _ in range(20):
                    async with session.get("/v1/status") as answer:
                        first, second = (await answer.json())["volumes"]
                    assert first["problem"]["code"] == "WORKER_SILENT"
                    assert first["worker_state"] == "silent"
                    assert second["problem"] is None
                async with session.get("/v1/volumes/r9") as answer:
                    assert answer.status == 404
                assert not stuck.done(), "all of that came before the hung one's answer"
                os.kill(hung.pid, signal.SIGCONT)
                assert (await stuck).status == 200

    run(scenario)


def test_metrics_are_served_where_configured(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = PORTS.take()
        config = with_node(configuration(tmp_path), metrics=Address("127.0.0.1", port))
        async with (
            running(config),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            text = await answer.text()
        assert 'repl_volume_disk_state{disk_state="up-to-date",volume="r0"} 1.0' in text

    run(scenario)
