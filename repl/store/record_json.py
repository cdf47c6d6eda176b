"""Durable records as JSON objects, driven by the types of their dataclass fields.

A record becomes an object whose keys are the field names, an enum its value, a tuple a list. The
way back is strict: exactly those keys, exactly those types, so that a record of another shape is
a `FormatError` with the place in it and never a KeyError or a half-filled record. Pure.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from typing import Any, TypeVar

from repl.core.facts import Facts
from repl.core.lineage import Generation

#: Numbers are ids, sizes, times and counters: never negative, never wider than 63 bits.
INTEGER_MAX = (1 << 63) - 1

Record = TypeVar("Record")


class FormatError(ValueError):
    """Bytes that are not what the format says; the message is one clause for people."""


def to_json(value: Any) -> Any:
    """Return the JSON form of a record (a dataclass of bool, int, str, enum, tuple, record)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[Record], value: Any, where: str) -> Record:
    """Build the record of this type; raise FormatError that names the place of a wrong part."""
    record: Record = _decode(kind, value, where)
    return record


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is bool or kind is str:
        if type(value) is not kind:
            raise FormatError(f"{where} is not a {'truth value' if kind is bool else 'text'}")
        return value
    if kind is int:
        if type(value) is not int or not 0 <= value <= INTEGER_MAX:
            raise FormatError(f"{where} is not a number from 0 to 2**63-1")
        return value
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        for member in kind:
            if type(value) is str and member.value == value:
                return member
        raise FormatError(f"{where} is not one of the words known here")
    if typing.get_origin(kind) is tuple:
        if type(value) is not list:
            raise FormatError(f"{where} is not a list")
        item_kind = typing.get_args(kind)[0]
        return tuple(_decode(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    assert dataclasses.is_dataclass(kind), f"no JSON form for {kind}"
    return _decode_record(kind, value, where)


def _decode_record(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not dict:
        raise FormatError(f"{where} is not an object")
    hints = _hints(kind)
    if value.keys() != hints.keys():
        odd = ", ".join(sorted(value.keys() ^ hints.keys()))
        raise FormatError(f"{where} has missing or unknown fields: {odd}")
    fields = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in hints}
    if kind is Generation:
        _check_generation(fields, where)
    if kind is Facts:
        _check_facts(fields, where)
    return kind(**fields)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _check_generation(fields: dict[str, Any], where: str) -> None:
    if fields["id"] == 0 or fields["counter"] == 0:
        raise FormatError(f"{where} has a generation id or counter of 0")
    members = fields["members"]
    if not members or members != tuple(sorted(set(members))):
        raise FormatError(f"{where}.members is not an ascending, non-empty list of node ids")


def _check_facts(fields: dict[str, Any], where: str) -> None:
    if fields["node_id"] == 0 or fields["size_bytes"] == 0:
        raise FormatError(f"{where} has a node id or a size of 0")
    names = [peer.name for peer in fields["peers"]]
    if "" in names or len(set(names)) != len(names):
        raise FormatError(f"{where}.peers has an empty or a repeated name")
