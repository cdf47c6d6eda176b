"""fio's command line and fio's JSON, as version 3.33 takes and prints them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench import fio
from bench.fio import Workload


def job(**changes: Any) -> dict[str, Any]:
    return {
        "jobname": "load",
        "error": 0,
        "usr_cpu": 12.5,
        "sys_cpu": 37.5,
        "mixed": {
            "iops": 1000.25,
            "bw_bytes": 4096000,
            "runtime": 2001,
            "total_ios": 2001,
            "lat_ns": {
                "percentile": {
                    "50.000000": 10000,
                    "99.000000": 200000,
                    "99.900000": 3000000,
                },
                "max": 4000000,
            },
        },
    } | changes


def printed(**changes: Any) -> str:
    return "fio: a remark\n" + json.dumps({"jobs": [job(**changes)]}) + "\nfio: another one\n"


def test_figures_are_read_from_between_the_remarks() -> None:
    measured = fio.parse(printed())
    assert measured == fio.Measured(
        operations=2001,
        runtime_s=2.001,
        iops=1000.25,
        bytes_per_s=4096000.0,
        p50_us=10.0,
        p99_us=200.0,
        p999_us=3000.0,
        longest_us=4000.0,
        fio_cpu_share=0.5,
    )


def test_a_fill_has_its_own_speed() -> None:
    assert fio.parse_fill(printed(write={"bw_bytes": 123456})) == 123456.0
    with pytest.raises(ValueError, match="another shape"):
        fio.parse_fill(printed())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fio: it broke\n", "no JSON"),
        (printed(error=5), "error 5"),
        (printed(mixed={"total_ios": 0}), "no request"),
        (printed(mixed={"total_ios": 1}), "another shape"),
        ('{"jobs": []}', "not enough values"),
    ],
)
def test_what_is_no_measurement_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fio.parse(text)


def test_connections_write_parts_that_do_not_overlap() -> None:
    four = Workload("randwrite", 4096, 32, connections=4)
    command = fio.arguments(four, "nbd://x", (1 << 20) + 4096, 2)
    assert "--numjobs=4" in command
    # The odd block at the end belongs to nobody.
    assert "--size=262144" in command
    assert "--offset_increment=262144" in command


def test_several_volumes_share_the_options_and_have_a_job_each() -> None:
    command = fio.arguments_for_each(
        Workload("randwrite", 4096, 1), ["nbd://x", "nbd://y"], 4096, 2
    )
    jobs = ["--name=load", "--uri=nbd://x", "--name=load", "--uri=nbd://y"]
    assert command[-4:] == jobs
    assert "--rw=randwrite" in command[:-4]


def test_mixes_and_flushes_are_asked_for_only_where_wanted() -> None:
    plain = " ".join(fio.arguments(Workload("randwrite", 4096, 1), "nbd://x", 1 << 20, 2))
    assert "rwmixread" not in plain
    assert "fsync" not in plain
    mixed = Workload("randrw", 4096, 1, read_percent=70, flush_every=32)
    asked = fio.arguments(mixed, "nbd://x", 1 << 20, 2)
    assert "--rwmixread=70" in asked
    assert "--fsync=32" in asked
