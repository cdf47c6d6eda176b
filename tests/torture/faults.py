"""The faults on real processes: each function strikes one node and returns how to mend it.

A fault that finds nothing to strike (its node is down already, or cannot be commanded) returns
None. A mend may be called when the node has died or was started again meanwhile.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests import libnbd
from tests.daemon import Node, wait_for
from tests.pair import is_in_sync
from tests.small_disk import fill_up, make_room
from tests.torture.plan import Kind
from tests.torture.scene import VOLUME, Mend, Scene, send

#: A full disk leaves this much room.
ROOM_BYTES = 256 << 10

Fault = Callable[[Scene, Node], Mend | None]


def nothing_to_mend() -> None:
    """What is left to do after a fault that passes by itself."""


def _restart(scene: Scene, *nodes: Node) -> Mend:
    def mend() -> None:
        for node in nodes:
            if node.process is None:
                node.start(wait=False)

    return mend


def kill_worker(scene: Scene, node: Node) -> Mend | None:
    if node.process is None:
        return None
    send(signal.SIGKILL, scene.worker_pids(node))
    return nothing_to_mend


def kill_daemon(scene: Scene, node: Node) -> Mend | None:
    if node.process is None:
        return None
    os.kill(node.process.pid, signal.SIGKILL)
    node.await_exit()
    scene.frozen.discard(node.name)
    return _restart(scene, node)


def kill_node(scene: Scene, node: Node) -> Mend | None:
    if node.process is None:
        return None
    node.kill()
    scene.frozen.discard(node.name)
    return _restart(scene, node)


def kill_both(scene: Scene, node: Node) -> Mend | None:
    other = scene.pair.other(node)
    struck = [kill_node(scene, node), kill_node(scene, other)]
    return _restart(scene, other, node) if any(struck) else None


def stop_node(scene: Scene, node: Node) -> Mend | None:
    if not scene.answers(node):
        return None
    node.stop()
    return _restart(scene, node)


def stop_both(scene: Scene, node: Node) -> Mend | None:
    running = [each for each in (node, scene.pair.other(node)) if scene.answers(each)]
    for each in running:
        each.begin_stop()
    for each in running:
        each.await_exit()
    return _restart(scene, *reversed(running)) if running else None


def freeze_worker(scene: Scene, node: Node) -> Mend | None:
    if node.process is None:
        return None
    pids = scene.worker_pids(node)
    send(signal.SIGSTOP, pids)
    return lambda: send(signal.SIGCONT, pids)


def freeze_daemon(scene: Scene, node: Node) -> Mend | None:
    process = node.process
    if process is None:
        return None
    os.kill(process.pid, signal.SIGSTOP)
    scene.frozen.add(node.name)

    def mend() -> None:
        if node.process is process:
            os.kill(process.pid, signal.SIGCONT)
            scene.frozen.discard(node.name)

    return mend


def freeze_node(scene: Scene, node: Node) -> Mend | None:
    process = node.process
    if process is None:
        return None
    node.freeze()
    scene.frozen.add(node.name)

    def mend() -> None:
        if node.process is process:
            node.thaw()
            scene.frozen.discard(node.name)

    return mend


def cut(scene: Scene, node: Node) -> Mend | None:
    scene.wire.cut()
    return nothing_to_mend


def part(scene: Scene, node: Node) -> Mend | None:
    scene.wire.part()
    return scene.wire.heal


def disconnect(scene: Scene, node: Node) -> Mend | None:
    if not scene.answers(node) or not scene.order(node, "disconnect", VOLUME):
        return None
    process = node.process

    def mend() -> None:
        # A daemon that was started anew connects by itself.
        if node.process is process and scene.answers(node):
            wait_for(lambda: scene.order(node, "connect", VOLUME), what="it connects again")

    return mend


def fill_disk(scene: Scene, node: Node) -> Mend | None:
    if node.disk_folder is None or not node.backing().exists():
        return None
    if scene.calm:
        # Otherwise the export may be out of reach, and this would wait for ever.
        _make_holes(scene)
    fill_up(node, ROOM_BYTES)
    return lambda: make_room(node)


def _make_holes(scene: Scene) -> None:
    """Zero every other mebibyte through the export, so that later writes there need room again."""
    nbd = libnbd.load()
    handle = nbd.NBD()
    ledger = scene.ledger
    step = (1 << 20) // ledger.block_bytes
    open_version = None
    handle.connect_uri(scene.primary.uri())
    try:
        for first in range(0, ledger.block_count, 2 * step):
            open_version = ledger.begin(first, step, zeroes=True)
            handle.zero(step * ledger.block_bytes, first * ledger.block_bytes)
            ledger.acknowledge(open_version)
            open_version = None
    finally:
        if open_version is not None:
            ledger.leave_open(open_version)
    handle.shutdown()


def switch_roles(scene: Scene, node: Node) -> Mend | None:
    old, new = scene.primary, scene.secondary
    if not scene.answers(old) or not scene.answers(new):
        return None
    if not scene.order(old, "demote", VOLUME, "--drop-clients"):
        return None
    scene.promote(new)
    return nothing_to_mend


def fail_over(scene: Scene, node: Node) -> Mend | None:
    """Kill the primary and promote the other, as an operator may who knows that it is dead.

    He may vouch only if it had not gone on alone before. That is looked at while the primary is
    stopped, so that it cannot change.
    """
    dead, survivor = scene.primary, scene.secondary
    if not scene.answers(dead) or not scene.answers(survivor):
        return None
    dead.freeze()
    if not is_in_sync(survivor.volume(VOLUME)):
        dead.thaw()
        return None
    dead.kill()
    survivor.wait_alone(VOLUME)
    wait_for(
        lambda: scene.promote(survivor, "--peer-dead", dead.name),
        what=f"{survivor.name} is promoted",
    )
    return _restart(scene, dead)


FAULTS: dict[Kind, Fault] = {
    Kind.KILL_WORKER: kill_worker,
    Kind.KILL_DAEMON: kill_daemon,
    Kind.KILL_NODE: kill_node,
    Kind.KILL_BOTH: kill_both,
    Kind.STOP_NODE: stop_node,
    Kind.STOP_BOTH: stop_both,
    Kind.FREEZE_WORKER: freeze_worker,
    Kind.FREEZE_DAEMON: freeze_daemon,
    Kind.FREEZE_NODE: freeze_node,
    Kind.CUT: cut,
    Kind.PART: part,
    Kind.DISCONNECT: disconnect,
    Kind.FILL_DISK: fill_disk,
    Kind.SWITCH: switch_roles,
    Kind.FAIL_OVER: fail_over,
}
