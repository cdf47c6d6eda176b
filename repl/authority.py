"""A small certificate authority for the nodes of one installation: keys and certificates as PEM.

Pure: returns what belongs into files and writes none. The authority's key signs once; whoever keeps
it can make certificates for further nodes.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Clocks of nodes may differ by so much when certificates are new.
BACKDATED = datetime.timedelta(hours=1)


class Authority:
    """A key and its self-signed certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def new(cls, now: datetime.datetime, days: int) -> Authority:
        """Make one that is valid for `days`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("repl authority")
        certificate = (
            _builder(name, name, key.public_key(), now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """Read it from PEM. Raises ValueError for what is no authority."""
        loaded = serialization.load_pem_private_key(key, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is of another kind than tls init makes")
        read = x509.load_pem_x509_certificate(certificate)
        if read.public_key() != loaded.public_key():
            raise ValueError("the authority's certificate and key do not belong together")
        return cls(loaded, read)

    def pem(self) -> tuple[bytes, bytes]:
        """Return (certificate, key)."""
        return _pem(self._certificate, self._key)

    def certify(
        self, node: str, now: datetime.datetime, days: int, hosts: Sequence[str] = ()
    ) -> tuple[bytes, bytes]:
        """Return (certificate, key) of a node: good for both ends of a connection. `hosts` are the
        names and IP addresses, beside the node's name, by which NBD clients reach it."""
        alternatives = [_host(name) for name in dict.fromkeys((node, *hosts))]
        return self._issue(
            node,
            now,
            days,
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            [x509.SubjectAlternativeName(alternatives)],
        )

    def certify_client(self, client: str, now: datetime.datetime, days: int) -> tuple[bytes, bytes]:
        """Return (certificate, key) of an NBD client. It has no DNS name, by which nodes know each
        other: whatever the client is called, no node takes it for a node."""
        return self._issue(client, now, days, [ExtendedKeyUsageOID.CLIENT_AUTH], [])

    def _issue(
        self,
        name: str,
        now: datetime.datetime,
        days: int,
        uses: list[x509.ObjectIdentifier],
        alternatives: Sequence[x509.SubjectAlternativeName],
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._certificate.subject, key.public_key(), now, days)
        for each in alternatives:
            builder = builder.add_extension(each, critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate, key)


def fingerprint_of_pem(certificate: bytes) -> str:
    """Return the SHA-256 of a PEM certificate as 64 hexadecimal digits; raises ValueError."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def names_of_pem(certificate: bytes) -> tuple[list[str], datetime.datetime]:
    """Return the names of a PEM certificate and when it ends; raises ValueError.

    DNS names and IP addresses, or the common name of one that has no alternative names.
    """
    read = x509.load_pem_x509_certificate(certificate)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(each.value) for each in common], read.not_valid_after_utc
    found = list(names.get_values_for_type(x509.DNSName))
    found += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return found, read.not_valid_after_utc


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
