"""A worker is started, watched, asked and replaced, and never delays anybody else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from repl.errors import Refused, TimedOut
from repl.node.channel import MESSAGE_BYTES_MAX
from repl.node.supervisor import worker_settings
from repl.node.volume_status import unknown_volume
from repl.node.worker_process import TRANSITIONS, WorkerProcess, WorkerState, WorkerTimes
from tests.node.daemon_parts import (
    TIMES,
    alive,
    configuration,
    run,
    running,
    until,
    until_volume,
)


def worker_that_runs(
    folder: Path, command: Sequence[str], times: WorkerTimes = TIMES
) -> WorkerProcess:
    config = configuration(folder)
    settings = worker_settings(config, config.volumes["r0"])
    return WorkerProcess(settings, unknown_volume("r0", 1 << 20, ()), command=command, times=times)


def pid_of(worker: WorkerProcess) -> int:
    assert worker.pid is not None
    return worker.pid


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_killed_worker_is_replaced_and_answers_again(tmp_path: Path, loop: str) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            await worker.request("promote", {}, 10.0)
            await until_volume(worker, lambda volume: volume["serving"])
            first = pid_of(worker)
            os.kill(first, signal.SIGKILL)
            await until(worker, lambda: worker.pid != first)
            dead = worker.last_volume()
            assert dead["problem"]["code"] == "WORKER_SILENT"
            assert dead["serving"] is False
            assert dead["role"] == "primary", "a restarted worker resumes, so the role is shown"
            await until_volume(worker, lambda volume: volume["serving"])
            assert worker.starts == 2
            assert worker.last_volume()["problem"] is None
            assert worker.last_volume()["worker_pid"] == worker.pid
            assert not alive(first)

    run(scenario, loop)


def test_worker_that_exits_at_once_is_started_with_growing_delays(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = WorkerTimes(backoff_first_s=0.01, backoff_max_s=0.08)
        command = (sys.executable, "-S", "-c", "raise SystemExit(4)")
        with capture_logs() as lines:
            worker = worker_that_runs(tmp_path, command, times)
            worker.start()
            await until(worker, lambda: worker.starts == 6)
            await worker.stop()
        assert lines[0]["ended"] == "exited with status 4"
        delays = [line["delay_s"] for line in lines if "delay_s" in line]
        assert delays[:5] == [0.01, 0.02, 0.04, 0.08, 0.08]
        assert worker.pid is None

    run(scenario)


def test_delay_is_short_again_after_a_long_life(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = WorkerTimes(backoff_first_s=0.01, backoff_reset_s=0.0)
        with capture_logs() as lines:
            worker = worker_that_runs(tmp_path, ("/bin/true",), times)
            worker.start()
            await until(worker, lambda: worker.starts == 4)
            await worker.stop()
        delays = [line["delay_s"] for line in lines if "delay_s" in line]
        assert delays[:3] == [0.01, 0.01, 0.01]

    run(scenario)


def test_program_that_cannot_be_started_is_shown_and_stop_still_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = worker_that_runs(tmp_path, ("/nonexistent/worker",))
        worker.start()
        await until(worker, lambda: worker.state is WorkerState.RESTARTING)
        assert "could not be started" in worker.last_volume()["problem"]["what"]
        await worker.stop()
        assert worker.state is WorkerState.STOPPED

    run(scenario)


def test_stopped_worker_delays_no_other_and_is_killed_and_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path, ("r0", "r1"))) as supervisor:
            hung, other = supervisor.workers["r0"], supervisor.workers["r1"]
            first = pid_of(hung)
            os.kill(first, signal.SIGSTOP)
            stuck = asyncio.create_task(hung.request("demote", {}, 30.0))
            answered_meanwhile = 0
            while hung.pid == first:
                result = await other.request("echo", {"n": answered_meanwhile}, 10.0)
                assert result == {"n": answered_meanwhile}
                answered_meanwhile += 1
                status = await supervisor.status()
                assert [volume["name"] for volume in status["volumes"]] == ["r0", "r1"]
                assert status["volumes"][1]["problem"] is None
            assert answered_meanwhile > 10, "the other volume went on all the time"
            assert not alive(first)
            with pytest.raises(TimedOut) as failure:
                await stuck
            assert failure.value.code == "WORKER_SILENT"
            await until_volume(hung, lambda volume: volume["problem"] is None)
            assert other.starts == 1

    run(scenario)


def test_hung_worker_is_waited_for_once_and_then_known_to_be_silent(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = WorkerTimes(silent_s=600.0)
        async with running(configuration(tmp_path), times) as supervisor:
            worker = supervisor.workers["r0"]
            os.kill(pid_of(worker), signal.SIGSTOP)
            volume = await worker.ask_volume()
            assert volume["problem"]["code"] == "WORKER_SILENT"
            assert volume["disk_state"] == "up-to-date", "the last thing it said"
            assert worker.state is WorkerState.SILENT
            with pytest.raises(StopIteration) as answered_without_a_wait:
                worker.ask_volume().send(None)
            assert answered_without_a_wait.value.value["problem"] is not None
            os.kill(pid_of(worker), signal.SIGCONT)
            await until_volume(worker, lambda volume: volume["problem"] is None)
            assert worker.starts == 1

    run(scenario)


def test_supervisor_that_was_stopped_itself_kills_no_healthy_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = WorkerTimes(silent_s=3.0)
        async with running(configuration(tmp_path), times) as supervisor:
            worker = supervisor.workers["r0"]
            first = pid_of(worker)
            time.sleep(4.0)  # what a stopped supervisor looks like from inside: the loop stands
            assert (await worker.request("echo", {"n": 1}, 20.0)) == {"n": 1}
            assert worker.pid == first

    run(scenario)


def test_requests_are_matched_by_id_and_errors_come_back_as_raised(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            answers = await asyncio.gather(
                *(worker.request("echo", {"n": n}, 20.0) for n in range(200))
            )
            assert answers == [{"n": n} for n in range(200)]
            with pytest.raises(Refused) as refusal:
                await worker.request("promote", {"lose_data": True}, 10.0)
            assert (refusal.value.code, refusal.value.why) == ("ALREADY", "because")
            big = {"text": "x" * (MESSAGE_BYTES_MAX - 200)}
            assert await worker.request("echo", big, 20.0) == big

    run(scenario)


def test_slow_answer_of_a_living_worker_is_a_timeout_and_not_silence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with pytest.raises(TimedOut) as failure:
                await supervisor.workers["r0"].request("never", {}, 0.3)
            assert failure.value.code == "TIMED_OUT"

    run(scenario)


def test_request_in_flight_fails_at_once_when_its_worker_dies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            with pytest.raises(TimedOut) as failure:
                await worker.request("exit", {}, 600.0)
            assert failure.value.code == "WORKER_SILENT"
            assert "unknown" in failure.value.what
            assert await worker.request("echo", {"n": 1}, 20.0) == {"n": 1}, "it waits for the new"

    run(scenario)


def test_worker_that_ignores_stop_is_killed_in_bounded_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = WorkerTimes(stop_s=0.3, silent_s=600.0)
        config = configuration(tmp_path)
        async with running(config, times) as supervisor:
            pid = pid_of(supervisor.workers["r0"])
            os.kill(pid, signal.SIGSTOP)
            await supervisor.stop()
            assert not alive(pid)
            with pytest.raises(Refused) as refusal:
                await supervisor.workers["r0"].request("echo", {}, 1.0)
            assert refusal.value.code == "SHUTTING_DOWN"

    run(scenario)


def test_every_worker_state_can_reach_stopped() -> None:
    assert set(TRANSITIONS) == set(WorkerState)
    reached = {WorkerState.STOPPED}
    for _ in WorkerState:
        reached |= {state for state, following in TRANSITIONS.items() if following & reached}
    assert reached == set(WorkerState)
    assert TIMES.backoff_first_s < TIMES.backoff_max_s
