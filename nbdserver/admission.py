"""Which clients may have an export: by where they come from, and by their certificate.

Pure. Owns the rule and its words; how a client proves who it is belongs to `tls.py`. A client on a
Unix socket was admitted by the permissions of the socket's file, and is asked for nothing more.

Spec: proto.md, "TLS support" (NOTLS, FORCEDTLS and SELECTIVETLS modes).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from nbdserver.export import Refusal
from nbdserver.protocol import Reply


class TlsMode(Enum):
    """Whether clients may, or must, begin TLS."""

    OFF = "off"
    ALLOWED = "allowed"
    REQUIRED = "required"

    def towards(self, *, local: bool) -> TlsMode:
        """The mode for clients of one socket: nobody can listen in on a Unix socket."""
        return TlsMode.ALLOWED if local and self is TlsMode.REQUIRED else self


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is known of a client. `names` are of its verified certificate: the alternative names, or
    the common name of one that has none; empty if no certificate was asked for."""

    local: bool = False
    encrypted: bool = False
    names: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def shown(self) -> str:
        """Who that is, for logs; empty without a certificate."""
        return ", ".join(ascii(name)[1:-1] for name in self.names)


def refusal(client: Credentials, allowed: Collection[str]) -> Refusal | None:
    """Why an export for the certificates of `allowed`, or for all if that is empty, is not for this
    client; None if it is."""
    if not allowed or client.local or not set(allowed).isdisjoint(client.names):
        return None
    if not client.encrypted:
        return Refusal(Reply.ERR_TLS_REQD, "this export is only for clients with a certificate")
    return Refusal(
        Reply.ERR_POLICY,
        f"this export is not for the certificate of {client.shown or 'nobody'}",
    )
