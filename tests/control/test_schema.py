"""What a request may say, and which HTTP status an error gets."""

from __future__ import annotations

import json

import pytest

from repl import errors
from repl.control.schema import VERBS, error_object, http_status, parse_body
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


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}"])
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_empty_body_stands_for_all_defaults(verb: str, body: bytes) -> None:
    assert parse_body(verb, body) == {
        key: expected.default for key, expected in VERBS[verb].fields.items()
    }


def test_given_fields_replace_their_defaults() -> None:
    body = json.dumps({"peer_dead": "beta", "lose_data": True}).encode()
    assert parse_body("promote", body) == {
        "peer_dead": "beta",
        "lose_data": True,
        "accept_half_copied": False,
    }
    assert parse_body("promote", b'{"peer_dead": null}')["peer_dead"] is None


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("promote", b"{", "not JSON"),
        ("promote", b"\xff", "not JSON"),
        ("promote", b"[]", "not a JSON object"),
        ("promote", b"[" * 16_000, "too deep"),
        ("promote", b'{"peer_dead": "\\ud800"}', "half of a character"),
        ("promote", b'{"loose_data": true}', "unknown key 'loose_data'"),
        ("promote", b'{"lose_data": 1}', "lose_data is true or false, not 1"),
        ("promote", b'{"lose_data": null}', "lose_data is true or false, not null"),
        ("promote", b'{"lose_data": "yes"}', "lose_data is true or false"),
        ("promote", b'{"peer_dead": true}', "peer_dead is the node"),
        ("connect", b'{"peer": 7}', "peer is the peer's name"),
        ("demote", b'{"discard": true}', "drop_clients"),
    ],
)
def test_unusable_body_is_a_usage_error_that_says_what(verb: str, body: bytes, words: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse_body(verb, body)
    assert words in failure.value.why
    assert verb in failure.value.what


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 400),
        (ConfigInvalid("x"), 400),
        (PermissionRefused("x"), 403),
        (NoSuchThing("x"), 404),
        (Refused("x"), 409),
        (NotConfirmed("x"), 409),
        (ReplError("x"), 500),
        (TimedOut("x"), 504),
        (TimedOut("x", code="WORKER_SILENT"), 503),
        (Refused("x", code="SHUTTING_DOWN"), 503),
    ],
)
def test_http_status_follows_the_kind_of_error(error: ReplError, status: int) -> None:
    assert http_status(error) == status


def test_error_survives_the_way_to_the_caller() -> None:
    error = Refused("what", "why", "next", code="DEMOTE_CLIENTS")
    back = errors.from_json(json.loads(json.dumps(error_object(error)))["error"])
    assert back.lines() == error.lines()
    assert type(back) is Refused
