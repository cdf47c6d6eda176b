"""The public shape of the control API: verbs with their fields, errors with their HTTP status.

Owns what a request may say and how an answer is spelled; the objects themselves are design §11's.
Fields may be added, never renamed. Nothing here does I/O or knows who carries a verb out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from repl.errors import (
    ConfigInvalid,
    NoSuchThing,
    NotConfirmed,
    PermissionRefused,
    Refused,
    ReplError,
    TimedOut,
    UsageError,
)

JsonObject = dict[str, Any]

BODY_BYTES_MAX: Final = 16 << 10


class Backend(Protocol):
    """What the control API needs from the daemon. Objects are those of design §11."""

    async def status(self) -> JsonObject:
        """Return `{"node", "version", "nbd", "volumes": [...]}`, within a bounded time.

        `nbd` says where the exports are: `socket` and `listen`, each a text or null, and `tls`, the
        word of the configuration for it.
        """

    def last_status(self) -> JsonObject:
        """Return the same from what is known already, without asking anybody."""

    async def volume(self, name: str) -> JsonObject:
        """Return one element of `volumes`. Raises NoSuchThing."""

    async def request(self, name: str, verb: str, args: JsonObject, timeout_s: float) -> JsonObject:
        """Have the volume carry out `verb`. Raises any ReplError."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request's body: what it is, and what it is when it is not given."""

    kind: type
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that a volume can be told to do."""

    #: Its name towards the worker.
    request: str
    #: How long the caller waits at most.
    timeout_s: float
    fields: Mapping[str, Field] = field(default_factory=dict)


_PEER = {"peer": Field(str, None, "the peer's name, or null for all")}

VERBS: Final[Mapping[str, Verb]] = {
    "promote": Verb(
        "promote",
        30.0,
        {
            "peer_dead": Field(str, None, "the node that an operator vouches is stopped, or null"),
            "lose_data": Field(bool, False, "true or false"),
            "accept_half_copied": Field(bool, False, "true or false"),
        },
    ),
    "demote": Verb("demote", 60.0, {"drop_clients": Field(bool, False, "true or false")}),
    "connect": Verb("connect", 10.0, _PEER),
    "disconnect": Verb("disconnect", 10.0, _PEER),
    "splitbrain-resolve": Verb(
        "splitbrain-resolve", 30.0, {"keep": Field(str, "", "the node whose copy is kept")}
    ),
    "adopt": Verb("adopt", 60.0, {"discard": Field(bool, False, "true or false")}),
    "continue": Verb("continue", 30.0),
    "resync-pause": Verb("resync-pause", 10.0),
    "resync-resume": Verb("resync-resume", 10.0),
    "resync-limit": Verb(
        "resync-limit",
        10.0,
        {"rate_bytes_per_s": Field(int, 0, "whole bytes per second, 0 for no limit")},
    ),
    "resync-full": Verb(
        "resync-full", 30.0, {"source": Field(str, "", "the node whose copy is kept")}
    ),
}

#: What is asked by GET: the last part of the path, and the question.
QUESTIONS: Final[Mapping[str, Verb]] = {
    "metadata": Verb("metadata-dump", 10.0),
    "splitbrain": Verb("splitbrain", 10.0),
}
#: Added to a verb's arguments by the server, from the socket: who gave the order.
CALLER_KEY: Final = "by"

_HTTP_OF_CODE: Final[Mapping[str, int]] = {"WORKER_SILENT": 503, "SHUTTING_DOWN": 503}
_HTTP_OF_FAMILY: Final[Mapping[type[ReplError], int]] = {
    UsageError: 400,
    ConfigInvalid: 400,
    PermissionRefused: 403,
    NoSuchThing: 404,
    Refused: 409,
    NotConfirmed: 409,
    TimedOut: 504,
}


def http_status(error: ReplError) -> int:
    """Return the HTTP status that goes with an error; what nobody foresaw is 500."""
    return _HTTP_OF_CODE.get(error.code) or _HTTP_OF_FAMILY.get(type(error), 500)


def error_object(error: ReplError) -> JsonObject:
    """Return the body of every answer that is not a success."""
    return {"error": error.to_json()}


def parse_body(verb_name: str, body: bytes) -> JsonObject:
    """Return the arguments of a verb, complete with defaults. Raises UsageError.

    An empty body stands for `{}`. A key that the verb does not have is an error, never ignored: it
    might have been the one that made the command safe.
    """
    fields = VERBS[verb_name].fields
    try:
        given = json.loads(body) if body.strip() else {}
    except RecursionError as error:
        raise _usage(verb_name, "the body is not JSON: it is nested too deep") from error
    except ValueError as error:
        raise _usage(verb_name, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise _usage(verb_name, "the body is not a JSON object")
    for key, value in given.items():
        if key not in fields:
            allowed = ", ".join(fields) or "none"
            raise _usage(verb_name, f"unknown key {key!r}; the keys of {verb_name} are: {allowed}")
        expected = fields[key]
        if type(value) is not expected.kind and not (value is None and expected.default is None):
            raise _usage(verb_name, f"{key} is {expected.meaning}, not {json.dumps(value)}")
        if isinstance(value, str) and not value.isascii() and not _encodable(value):
            raise _usage(verb_name, f"{key} holds half of a character: {json.dumps(value)}")
    return {key: given.get(key, expected.default) for key, expected in fields.items()}


def _encodable(text: str) -> bool:
    """Whether a text can go to the worker and to a log: JSON may name half of a surrogate pair."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def _usage(verb_name: str, why: str) -> UsageError:
    return UsageError(
        f"{verb_name}: the request cannot be used", why, f"replctl {verb_name} --help"
    )
