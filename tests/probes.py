"""Probes that prove at run time why a test was skipped (`tests/allowed_skips.txt` names them).

A probe returns True only when it has *seen* that the machine lacks what the test needs. Tests ask
the same probe before they skip, so a skip and its proof can never disagree.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

PROBE_DEADLINE_S = 20.0


def no_network_namespaces() -> bool:
    """This user or kernel refuses a network, mount, UTS and process namespace with a veth pair."""
    script = "ip link add probe0 type veth peer name probe1 && mount -t tmpfs none /srv"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
    try:
        done = subprocess.run(
            [*command, "--mount-proc", "sh", "-c", script],
            capture_output=True,
            timeout=PROBE_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return done.returncode != 0


def no_network_faults() -> bool:
    """This user or kernel cannot drop packets with nft or shape them with tbf in a namespace."""
    script = (
        "ip link add probe0 type veth peer name probe1"
        " && nft add table ip probe && tc qdisc add dev probe0 root tbf rate 1mbit burst 32kbit"
        " latency 10ms"
    )
    try:
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script],
            capture_output=True,
            timeout=PROBE_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return done.returncode != 0 or no_network_namespaces()


PROBES: dict[str, Callable[[], bool]] = {
    "no_network_namespaces": no_network_namespaces,
    "no_network_faults": no_network_faults,
}
