"""Sizes, rates and durations as people write them, both ways: "10GiB", "250MB/s", "3m12s".

Parsing is strict: a text has one meaning or it is refused with a sentence that says how to write
it. Everything parsed is in base units (bytes, bytes per second, seconds). `*_exact` and
`format_duration` give texts that parse back to the same value; the other formats round, for people.
Nothing here imports anything of ours.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

SIZE_UNITS: dict[str, int] = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
    "EiB": 1 << 60,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "EB": 10**18,
}
DURATION_UNITS_MS: dict[str, int] = {
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}
TEXT_CHARACTERS_MAX = 64
"""No size, rate or duration is written longer; a longer text is refused unread."""

_BINARY = ("EiB", "PiB", "TiB", "GiB", "MiB", "KiB")
_DECIMAL = ("EB", "PB", "TB", "GB", "MB", "kB")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)
_PLAIN_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|d|h|m|s)", re.ASCII)


class UnitInvalid(ValueError):
    """A text that is no size, rate or duration; the message is a sentence for people."""


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: "4096", "512MiB", "1.5 GiB", "1TB".

    Raises UnitInvalid: unknown unit, no number, negative, or not a whole number of bytes.
    """
    return _whole_bytes(text, "size", '"10GiB", "512MiB", "1TB" or a number of bytes')


def parse_rate(text: str) -> int:
    """Return the bytes per second that `text` means: "250MB/s", "1GiB/s", "4096 B/s"."""
    form = '"250MB/s" or "64MiB/s"'
    if not text.endswith("/s"):
        raise UnitInvalid(f"{_shown(text)} is not a rate; write it like {form}")
    return _whole_bytes(text[:-2].rstrip(" "), "rate", form)


def _whole_bytes(text: str, noun: str, form: str) -> int:
    match = _QUANTITY.fullmatch(text) if len(text) <= TEXT_CHARACTERS_MAX else None
    if match is None:
        raise UnitInvalid(f"{_shown(text)} is not a {noun}; write it like {form}")
    number, unit = match[1], match[2] or "B"
    if unit not in SIZE_UNITS:
        meant = [name for name in SIZE_UNITS if name.lower() in (unit.lower(), unit.lower() + "b")]
        meant += [name for name in _BINARY if name[0].lower() == unit.lower()]
        hint = f"; did you mean {' or '.join(sorted(set(meant)))}?" if meant else f"; use {form}"
        raise UnitInvalid(f"{_shown(text)} has the unknown unit {_shown(unit)}{hint}")
    amount = Fraction(number) * SIZE_UNITS[unit]
    if amount.denominator != 1:
        raise UnitInvalid(f"{_shown(text)} is not a whole number of bytes")
    return int(amount)


def parse_duration(text: str) -> float:
    """Return the seconds that `text` means: "1.5s", "3m12s", "500ms", "1d2h", "30".

    Units go from large to small, each at most once; only the last may have a fraction.
    """
    refusal = f'{_shown(text)} is not a duration; write it like "1.5s", "3m12s" or "500ms"'
    if not text or len(text) > TEXT_CHARACTERS_MAX:
        raise UnitInvalid(refusal)
    if _PLAIN_SECONDS.fullmatch(text):
        return float(text)
    position, largest_ms, total_ms, fraction_seen = 0, math.inf, Fraction(0), False
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None or fraction_seen:
            raise UnitInvalid(refusal)
        unit_ms = DURATION_UNITS_MS[match[2]]
        if unit_ms >= largest_ms:
            raise UnitInvalid(f"{_shown(text)} must name its units from large to small, once each")
        total_ms += Fraction(match[1]) * unit_ms
        largest_ms, fraction_seen, position = unit_ms, "." in match[1], match.end()
    return float(total_ms / 1000)


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` rounded for people, in binary units: "6.1 GiB", "0 B"."""
    _refuse_negative(size_bytes)
    return _rounded(size_bytes, _BINARY, 1024)


def format_rate(rate_bytes_per_s: float) -> str:
    """Return the rate rounded for people, in decimal units: "212 MB/s"."""
    _refuse_negative(rate_bytes_per_s)
    return _rounded(rate_bytes_per_s, _DECIMAL, 1000) + "/s"


def _rounded(amount: float, units: tuple[str, ...], step: int) -> str:
    """Return one decimal below 100 and none above; never "1024.0 MiB" for just under 1 GiB."""
    scaled, unit = float(amount), "B"
    for larger in reversed(units):
        if scaled < step - 0.5:
            break
        scaled, unit = scaled / step, larger
    if unit == "B" or scaled >= 99.95:
        return f"{scaled:.0f} {unit}"
    return f"{scaled:.1f} {unit}".replace(".0 ", " ")


def format_duration(duration_s: float) -> str:
    """Return the duration to the millisecond; parse_duration gives it back: "3m12s", "1.5s"."""
    _refuse_negative(duration_s)
    rest_ms = round(duration_s * 1000)
    if 0 < rest_ms < 1000:
        return f"{rest_ms}ms"
    text = ""
    for unit in ("d", "h", "m"):
        count, rest_ms = divmod(rest_ms, DURATION_UNITS_MS[unit])
        text += f"{count}{unit}" if count else ""
    if rest_ms or not text:
        whole, fraction_ms = divmod(rest_ms, 1000)
        text += f"{whole}.{fraction_ms:03d}".rstrip("0").rstrip(".") + "s"
    return text


def describe_duration(duration_s: float) -> str:
    """Return the two largest units, for a sentence: "33 s", "4 min 10 s", "2 d 3 h"."""
    _refuse_negative(duration_s)
    rest_s = round(duration_s)
    parts: list[tuple[int, str]] = []
    for word, unit_s in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest_s = divmod(rest_s, unit_s)
        if count or (parts and len(parts) < 2):
            parts.append((count, word))
    shown = [f"{count} {word}" for count, word in parts[:2] if count]
    return " ".join(shown) or "0 s"


def _refuse_negative(amount: float) -> None:
    if not 0 <= amount < math.inf:
        raise UnitInvalid(f"{amount} is not a size, rate or duration: it must be 0 or more")


def _shown(text: str) -> str:
    """Return `text` quoted for a message, cut short, with nothing unprintable in it."""
    short = text if len(text) <= TEXT_CHARACTERS_MAX else text[:TEXT_CHARACTERS_MAX] + "…"
    return "'" + "".join(c if c.isprintable() else "?" for c in short) + "'"
