"""What the profiler's instruments print, read."""

from __future__ import annotations

import os

from bench.profiling import Usage, parse_events, parse_stacks, parse_symbols, parse_usage

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


def test_stacks_are_counted_by_function_own_and_with_callees() -> None:
    own, total = parse_stacks(
        "run (/x/repl/node/engine.py:12);take (/x/repl/core/volume.py:3) 5\n"
        "run (/x/repl/node/engine.py:14);run (/x/repl/node/engine.py:12) 2\n"
        "run (/x/repl/node/engine.py:12) 1\n"
    )
    assert own == {"volume.take": 5, "engine.run": 3}
    assert total == {"engine.run": 8, "volume.take": 5}


def test_frames_without_a_file_keep_their_name() -> None:
    own, _ = parse_stacks("start;<module> (worker.py:1) 4\n\n")
    assert own == {"worker.<module>": 4}


def test_system_calls_are_read_from_perf_stat() -> None:
    text = (
        "# started on Sun\n\n"
        "120,,syscalls:sys_enter_sendmsg,1000,100.00,,\n"
        "<not counted>,,syscalls:sys_enter_read,0,0.00,,\n"
    )
    assert parse_events(text) == {"sendmsg": 120}


def test_symbols_tell_kernel_from_libraries() -> None:
    text = (
        "# a remark\n"
        "    23.50%  libpython3.11.so.1.0  [.] _PyEval_EvalFrameDefault  -      -\n"
        "     7.00%  [kernel.kallsyms]  [k] ext4_block_write_begin\n"
    )
    assert parse_symbols(text) == [
        (23.5, "libpython3.11.so.1.0 _PyEval_EvalFrameDefault"),
        (7.0, "kernel ext4_block_write_begin"),
    ]


def test_processor_time_is_given_per_operation() -> None:
    stat = "7 (a b) S 1 2 3 0 -1 0 0 0 0 0 {user} {system} 0 0"
    earlier = parse_usage(stat.format(user=100, system=50))
    later = parse_usage(stat.format(user=140, system=60))
    assert later.since(earlier, 10.0) == Usage(4 * TICK_US, 1 * TICK_US)
    assert later.since(earlier, 10.0).total_us == 5 * TICK_US
