"""Accepted TLS handshakes of a worker: few at once, and silent ones do not keep the peer out."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from nbdserver.crowd import SHELTER_S
from repl.link.tls import TlsSocket, secure
from repl.node.peer_tls import HANDSHAKES_MAX, PeerTls
from repl.tls_files import TlsFiles
from tests.certificates import make_certificates

DEADLINE_S = 20.0


def settings_of(folder: Path, node: str, peer: str) -> dict[str, Any]:
    names = ("certificate", "key", "authority")
    paths = (folder / f"{node}.crt", folder / f"{node}.key", folder / "ca.crt")
    return {
        "tls": dict(zip(names, map(str, paths), strict=True)),
        "peer": {"name": peer, "fingerprint": ""},
        "timeouts": {"peer_timeout_s": DEADLINE_S},
    }


def test_silent_handshakes_do_not_keep_the_peer_out(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "tls", "alpha", "beta")

    async def script() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[TlsSocket] = []
        refused: list[str] = []
        settings = settings_of(folder, "alpha", "beta")
        tls = PeerTls(loop, settings, accepted.append, refused.append)
        silent = [socket.socketpair() for _ in range(HANDSHAKES_MAX)]
        for _, theirs in silent:
            tls.take(theirs)
        # All of these are of one origin, this process: nobody takes a place in its first second.
        await asyncio.sleep(SHELTER_S)
        near, far = socket.socketpair()
        near.setblocking(False)
        tls.take(far)
        beta = TlsFiles(**settings_of(folder, "beta", "alpha")["tls"])
        mine = await secure(loop, near, beta, "alpha", "", server=False)
        while not accepted:
            await asyncio.sleep(0.001)
        silent[0][0].setblocking(False)
        assert await loop.sock_recv(silent[0][0], 1) == b"", "the oldest made way"
        assert refused == [f"more than {HANDSHAKES_MAX} TLS handshakes were going on at once"]
        tls.close()
        await asyncio.sleep(0)
        for end in (mine, *accepted):
            end.close()
        for ours, theirs in silent:
            ours.close()
            theirs.close()

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(bounded())
