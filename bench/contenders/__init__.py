"""Who takes part, by key. The order is the order of every table."""

from __future__ import annotations

from bench.contender import Contender
from bench.contenders.limit import Limit
from bench.contenders.ours import NbdServer, Repl, Tls
from bench.contenders.plain import Nbdkit, NbdServerC, QemuNbd
from bench.contenders.qemu import QemuPair
from tests.daemon import ROOT

CONTENDERS: dict[str, Contender] = {
    contender.key: contender
    for contender in (
        Repl("repl", "this project, two copies", replicated=True),
        Repl("repl-interpreted", "this project, not compiled", replicated=True, root=ROOT),
        Repl(
            "repl-tls", "this project, two copies, peers over TLS", replicated=True, tls=Tls.PEERS
        ),
        Repl(
            "repl-nbds",
            "this project, two copies, peers and client over TLS",
            replicated=True,
            tls=Tls.EVERYWHERE,
        ),
        Limit("limit", "C limit, two copies", replicated=True),
        Limit("limit-crc", "C limit with crc32c", replicated=True, crc=True),
        QemuPair("mirror-tcp", "qemu mirror over TCP"),
        QemuPair("mirror-unix", "qemu mirror over a Unix socket", unix=True),
        QemuPair("quorum", "qemu quorum over TCP", quorum=True),
        Repl("repl-single", "this project, one copy", replicated=False),
        NbdServer("nbdserver", "nbdserver (ours, plain file)"),
        NbdServer("nbdserver-tls", "nbdserver over TLS", tls=True),
        Limit("limit-single", "C limit, one copy", replicated=False),
        Nbdkit("nbdkit", "nbdkit file"),
        Nbdkit("nbdkit-tls", "nbdkit file over TLS", tls=True),
        QemuNbd(),
        NbdServerC(),
    )
}
