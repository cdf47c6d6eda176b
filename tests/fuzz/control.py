"""Fuzz target: bodies of requests to the control socket.

Claims: a body is taken or refused with a sentence, whatever it is; what is taken has exactly the
verb's fields with their types, and can be passed on to the worker; a refusal can be shown.
"""

from __future__ import annotations

import json
from typing import Final

from repl.control.schema import BODY_BYTES_MAX, VERBS, error_object, parse_body
from repl.errors import UsageError
from repl.node.channel import encode
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted

VERB_NAMES: Final = tuple(VERBS)


def run(data: bytes) -> None:
    """One input: which verb, and its body."""
    choices, body = parted(data)
    name = VERB_NAMES[choices.number(0, len(VERB_NAMES))]
    # The server reads no longer bodies; deep ones are short.
    body = (body * (1, 1, 200, 4000)[choices.number(1, 4)])[:BODY_BYTES_MAX]
    try:
        arguments = parse_body(name, body)
    except UsageError as error:
        shown = error_object(error)["error"]
        claim(all(shown[key] for key in ("code", "what", "why", "next")), f"{shown}")
        json.dumps(shown).encode()
        str(error).encode()
        return
    fields = VERBS[name].fields
    claim(arguments.keys() == fields.keys(), f"{arguments}")
    for key, value in arguments.items():
        good = type(value) is fields[key].kind or value is None is fields[key].default
        claim(good, f"{key}: {value!r}")
    message = encode({"kind": "request", "id": 1, "verb": VERBS[name].request, "args": arguments})
    claim(json.loads(message)["args"] == arguments, "it does not arrive as it was sent")


def split(stream: bytes) -> list[bytes]:
    """Tokens of JSON, roughly."""
    found, word = [], b""
    for place in range(len(stream)):
        byte = stream[place : place + 1]
        if byte in b'{}[],:"':
            found += [word, byte]
            word = b""
        else:
            word += byte
    return [each for each in (*found, word) if each]


_WORDS: Final = (
    *("{", "}", "[", "]", ",", ":", '"', "true", "false", "null", "0", "-1", "1e999", "NaN"),
    *("1" * 30, "\\ud800", "\\u0000", "é", "\x00", " ", '{"a":', "[" * 50, "0.5"),
    *{f'"{name}"' for verb in VERBS.values() for name in verb.fields},
    *('"beta"', '{"peer":"beta"}', '{"peer_dead":"beta","lose_data":true}'),
)
GRAMMAR = Grammar(split, tuple(word.encode() for word in _WORDS))


def grammar() -> Grammar:
    return GRAMMAR


def seeds() -> list[bytes]:
    """A good body for each verb, and nothing."""
    found = []
    for number, verb in enumerate(VERBS.values()):
        body = {key: field.default for key, field in verb.fields.items()}
        found.append(bytes([number]) + bytes(7) + json.dumps(body).encode())
    return [*found, b""]
