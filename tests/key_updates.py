"""TLS 1.3 KeyUpdate records of a client, which Python's `ssl` cannot make."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

Aead = type[AESGCM] | type[ChaCha20Poly1305]


class KeyUpdates:
    """Each record asks the server for one of its own. From the secret that `ssl` writes into a key
    log; nothing else may have been sent by the client since the handshake. RFC 8446, 7.3."""

    _CIPHERS: Final[
        dict[str, tuple[hashes.HashAlgorithm, int, type[AESGCM] | type[ChaCha20Poly1305]]]
    ] = {
        "TLS_AES_256_GCM_SHA384": (hashes.SHA384(), 32, AESGCM),
        "TLS_AES_128_GCM_SHA256": (hashes.SHA256(), 16, AESGCM),
        "TLS_CHACHA20_POLY1305_SHA256": (hashes.SHA256(), 32, ChaCha20Poly1305),
    }

    def __init__(self, key_log: Path, cipher: str) -> None:
        (line,) = [
            each for each in key_log.read_text().splitlines() if "CLIENT_TRAFFIC_SECRET_0" in each
        ]
        self._secret = bytes.fromhex(line.split()[2])
        self._hash, self._key_bytes, self._cipher = self._CIPHERS[cipher]

    def _expand(self, label: str, length: int) -> bytes:
        name = b"tls13 " + label.encode()
        info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
        return HKDFExpand(self._hash, length, info).derive(self._secret)

    def record(self) -> bytes:
        """The next one; the first of a fresh key each, so that its number is 0."""
        update_and_type = bytes([24, 0, 0, 1, 1]) + bytes([22])
        header = bytes([23, 3, 3]) + (len(update_and_type) + 16).to_bytes(2, "big")
        cipher = self._cipher(self._expand("key", self._key_bytes))
        sealed = cipher.encrypt(self._expand("iv", 12), update_and_type, header)
        self._secret = self._expand("traffic upd", self._hash.digest_size)
        return header + sealed
