"""TLS towards NBD clients: the files that it needs, and whether they fit together.

Reads files only when asked to. TLS itself runs in processes of its own (`tls_proxies.py`).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from nbdserver.errors import ClientError


@dataclass(frozen=True, slots=True)
class TlsServerFiles:
    """Paths of PEM files. With an `authority` every client must show a certificate of it."""

    certificate: str
    key: str
    authority: str = ""


class TlsRefused(ClientError):
    """The client's TLS handshake failed; the sentence says why."""


def server_context(files: TlsServerFiles) -> ssl.SSLContext:
    """Return a TLS 1.3 context. Raises OSError (ssl.SSLError is one) for files that do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Connections are long and few: nobody would use a session ticket.
    context.num_tickets = 0
    if files.authority:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key is protected by a password")


def problem_of(files: TlsServerFiles) -> str:
    """A sentence about what does not fit; empty if all is well."""
    for path in (files.authority, files.certificate, files.key):
        if not path:
            continue
        try:
            with open(path, "rb") as stream:
                stream.read(1)
        except OSError as error:
            return f"{path}: {error.strerror}"
    try:
        if files.authority:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(files.authority)
    except OSError:
        return f"{files.authority} holds no certificate in PEM form"
    try:
        server_context(files)
    except OSError as error:
        return f"{files.certificate} and {files.key} cannot be used: {reason_of(error)}"
    return ""


def reason_of(error: OSError) -> str:
    """Say in small letters what OpenSSL says in capitals."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else error.strerror or str(error)
