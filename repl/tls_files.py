"""The TLS material of a node: where it is, whether it fits together, and contexts made from it.

Reads files only when asked to. Knows nothing of peers or connections.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: this node's certificate and key, and the authority of all nodes."""

    certificate: str
    key: str
    authority: str


def make_context(files: TlsFiles, *, server: bool) -> ssl.SSLContext:
    """Return a TLS 1.3 context that asks for and checks the other side's certificate.

    Raises OSError (ssl.SSLError is one) if a file cannot be read or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Names are checked by whoever knows whom to expect, the same way on both sides.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    if server:
        # Connections are long and few: nobody would use a session ticket.
        context.num_tickets = 0
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key is protected by a password")


def problem_of(files: TlsFiles) -> tuple[str, str] | None:
    """Return the field that does not fit and a sentence about it; None if all is well."""
    for field, path in (
        ("authority", files.authority),
        ("certificate", files.certificate),
        ("key", files.key),
    ):
        try:
            with open(path, "rb") as stream:
                stream.read(1)
        except OSError as error:
            return field, f"{path}: {error.strerror}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(files.authority)
    except OSError:
        return "authority", f"{files.authority} holds no certificate in PEM form"
    try:
        make_context(files, server=True)
    except OSError as error:
        reason = getattr(error, "reason", None) or str(error)
        return "certificate", (
            f"{files.certificate} and {files.key} cannot be used together: {reason}"
        )
    return None


def fingerprint_of(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate in DER form, as 64 hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()
