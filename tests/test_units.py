"""Sizes, rates and durations: what is read, what is refused, and that texts read back equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl import units
from repl.units import UnitInvalid


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("0", 0),
        ("1B", 1),
        ("10GiB", 10 << 30),
        ("10 GiB", 10 << 30),
        ("512MiB", 512 << 20),
        ("1TB", 10**12),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1.5GiB", 3 << 29),
        ("8EiB", 8 << 60),
    ],
)
def test_size_texts_mean_bytes(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "GiB",
        "-1",
        "+1",
        "1e9",
        "10  GiB",
        " 10GiB",
        "10GiB ",
        "10GiB\n",
        "10XB",
        "0x10",
        "1_000",
        "1.GiB",
        ".5GiB",
        "1.5",
        "0.3KiB",
        "١GiB",
        "1GiB/s",
        "nan",
        "9" * 65,
    ],
)
def test_unclear_sizes_are_refused(text: str) -> None:
    with pytest.raises(UnitInvalid):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("10G", "GB or GiB"), ("10gib", "GiB"), ("5m", "MB or MiB"), ("7GIB", "GiB")],
)
def test_ambiguous_unit_names_the_units_meant(text: str, hint: str) -> None:
    with pytest.raises(UnitInvalid, match=f"did you mean {hint}"):
        units.parse_size(text)


def test_refusal_shows_no_control_characters() -> None:
    with pytest.raises(UnitInvalid) as refusal:
        units.parse_size("1\x1b[31mGiB")
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "rate_bytes_per_s"),
    [("250MB/s", 250_000_000), ("64 MiB/s", 64 << 20), ("4096 B/s", 4096), ("4096/s", 4096)],
)
def test_rate_texts_mean_bytes_per_second(text: str, rate_bytes_per_s: int) -> None:
    assert units.parse_rate(text) == rate_bytes_per_s


@pytest.mark.parametrize("text", ["", "/s", "250MB", "250MB/m", "250Mb/s", "MB/s", "-1MB/s"])
def test_unclear_rates_are_refused(text: str) -> None:
    with pytest.raises(UnitInvalid):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("30", 30.0),
        ("0.25", 0.25),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("3m12s", 192.0),
        ("3m12.5s", 192.5),
        ("1d2h3m4s5ms", 93784.005),
        ("2h", 7200.0),
    ],
)
def test_duration_texts_mean_seconds(text: str, duration_s: float) -> None:
    assert units.parse_duration(text) == duration_s


@pytest.mark.parametrize(
    "text",
    ["", "s", "1.5m3s", "3s1m", "1s1s", "-1s", "1 s", "1x", "1s ", "s1", "inf", "nan", "9" * 65],
)
def test_unclear_durations_are_refused(text: str) -> None:
    with pytest.raises(UnitInvalid):
        units.parse_duration(text)


@given(st.integers(min_value=0, max_value=2**32 - 1), st.sampled_from(sorted(units.SIZE_UNITS)))
def test_every_unit_reads_as_its_factor(count: int, unit: str) -> None:
    assert units.parse_size(f"{count}{unit}") == count * units.SIZE_UNITS[unit]
    assert units.parse_rate(f"{count}{unit}/s") == count * units.SIZE_UNITS[unit]


@given(st.integers(min_value=0, max_value=10**12))
def test_duration_reads_back_equal_to_the_millisecond(duration_ms: int) -> None:
    text = units.format_duration(duration_ms / 1000)
    assert round(units.parse_duration(text) * 1000) == duration_ms


@given(st.integers(min_value=0, max_value=2**64))
def test_rounded_size_stays_within_its_rounding(size_bytes: int) -> None:
    number, unit = units.format_size(size_bytes).split(" ")
    shown_bytes = float(number) * units.SIZE_UNITS[unit]
    assert abs(shown_bytes - size_bytes) <= max(0.051 * units.SIZE_UNITS[unit], size_bytes * 0.006)
    assert float(number) < 1024


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_with_a_sentence(text: str) -> None:
    for parse in (units.parse_size, units.parse_rate, units.parse_duration):
        sentence = "accepted"
        try:
            assert parse(text) >= 0
        except UnitInvalid as refusal:
            sentence = str(refusal)
        assert sentence.isprintable()


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (6549825126, "6.1 GiB"),
        (40 << 30, "40 GiB"),
        ((1 << 30) - 1, "1 GiB"),
        (120 << 30, "120 GiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert units.format_size(size_bytes) == text


def test_rates_and_durations_for_people() -> None:
    assert units.format_rate(212_000_000) == "212 MB/s"
    assert units.format_rate(999_999) == "1 MB/s"
    assert units.format_rate(0) == "0 B/s"
    assert units.describe_duration(0) == "0 s"
    assert units.describe_duration(33.2) == "33 s"
    assert units.describe_duration(250) == "4 min 10 s"
    assert units.describe_duration(3600) == "1 h"
    assert units.describe_duration(183_600) == "2 d 3 h"
    assert units.format_duration(0) == "0s"
    assert units.format_duration(0.5) == "500ms"
    assert units.format_duration(192) == "3m12s"


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
def test_negative_or_endless_amounts_are_never_shown(amount: float) -> None:
    for show in (units.format_rate, units.format_duration, units.describe_duration):
        with pytest.raises(UnitInvalid):
            show(amount)
