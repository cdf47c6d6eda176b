"""Limits by name: what is taken, what is refused and in which words."""

from __future__ import annotations

import dataclasses

import pytest

from nbdserver import limits
from nbdserver.limits import LimitInvalid, Limits


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("clients", "16", 16),
        ("total_bytes", "64MiB", 64 << 20),
        ("total_bytes", "1 GiB", 1 << 30),
        ("total_bytes", "67108864", 64 << 20),
        ("handshake_deadline_s", "2.5", 2.5),
        ("idle_s", "0", 0),
        ("option_bytes", " 64KiB ", 64 << 10),
    ],
)
def test_value_is_read_with_its_unit(name: str, text: str, value: float) -> None:
    assert limits.parse(name, text) == value
    assert getattr(limits.make({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("clientz", "1", "no limit 'clientz'; there are: clients, "),
        ("clients", "0", "clients must be 1 to 65536"),
        ("held", "0", "held must be 1 to 65536"),
        ("clients", "2.5", "clients must be a whole number, not '2.5'"),
        ("clients", "1KiB", "whole number"),
        ("clients", "-1", "whole number"),
        ("total_bytes", "1MiB", "total_bytes must be 64 MiB to 1024 GiB"),
        ("total_bytes", "64 MB", 'bytes, like "64MiB", not'),
        ("handshake_deadline_s", "soon", "must be seconds"),
        ("handshake_deadline_s", "nan", "must be seconds"),
        ("handshake_deadline_s", "99999", "handshake_deadline_s must be 0.05 s to 3600 s"),
        ("in_flight_bytes", "1MiB", "32 MiB to"),
    ],
)
def test_value_that_cannot_be_is_refused_with_what_can(name: str, text: str, words: str) -> None:
    with pytest.raises(LimitInvalid) as refusal:
        limits.parse(name, text)
    assert words in str(refusal.value)


def test_no_limit_can_be_made_that_would_stop_every_request() -> None:
    for change in (
        {"in_flight_bytes": 1 << 20},
        {"in_flight_requests": 0},
        {"buffer_bytes": 1},
        {"held": 0},
    ):
        with pytest.raises(LimitInvalid):
            limits.make(change)
        with pytest.raises(LimitInvalid):
            dataclasses.replace(Limits(), **change)


def test_table_shows_every_limit_with_default_and_meaning() -> None:
    lines = limits.table().splitlines()
    assert [line.split()[0] for line in lines] == list(limits.names())
    assert all(
        limits.text_of(name) in line for name, line in zip(limits.names(), lines, strict=True)
    )
    assert any("256 MiB" in line for line in lines)
