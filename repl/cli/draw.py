"""`replctl status` as a person reads it: the verdict, a line per peer, then why and what next.

Every state is a word; colour only repeats it, and off a terminal there is none. Nothing moves.
Each volume is one line however wide, so that it can be searched. rich is imported when drawing
begins.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from repl import units
from repl.cli import health, progress
from repl.cli.health import Finding, Level
from repl.cli.output import one_line
from repl.cli.remarks import permits, remarks
from repl.cli.snapshot import Node, Peer, Volume

if TYPE_CHECKING:
    from rich.console import Console

LINE_CELLS_MAX = 4000
"""Wider than any line, so that the table is never wrapped or cut."""
_COLUMNS = (
    ("VOLUME", False),
    ("ROLE", False),
    ("SERVICE", False),
    ("REDUNDANCY", False),
    ("SIZE", True),
    ("PEER", False),
    ("LINK", False),
    ("STATE", False),
    ("BEHIND", True),
)
_COLOURS = {Level.OK: "bold green", Level.DEGRADED: "bold yellow", Level.CRITICAL: "bold red"}
_REPLICATION_WORDS = {
    "established": "in sync",
    "settling": "comparing",
    "sync-source": "resyncing",
    "sync-target": "resyncing",
    "verify-source": "verifying",
    "verify-target": "verifying",
}


def picture(node: Node, stream: TextIO) -> str:
    """Return the whole picture, drawn for what `stream` is: its colours and its characters."""
    verdict = health.judge_node(node)
    header, *rows = (row.rstrip() for row in _table(node, stream))
    unicode = is_unicode(stream)
    lines = [_headline(node, verdict, len(header), stream)]
    if node.volumes:
        lines.append(header)
    remaining = iter(rows)
    for volume in node.volumes:
        for peer in volume.peers or (None,):
            lines.append(next(remaining))
            if peer is not None and peer.resync is not None:
                lines.append("   " + one_line(progress.line(peer, peer.resync, unicode)))
    lines += [f" {word:<5} {sentence}" for word, sentence in _explanations(node)]
    return "\n".join(lines)


def is_unicode(stream: TextIO) -> bool:
    """Return whether bars may be drawn with block characters."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "") in ("utf8", "utf8sig")


def _headline(node: Node, verdict: Finding, width: int, stream: TextIO) -> str:
    from rich.text import Text

    left = f" {verdict.level.name}  {one_line(verdict.sentence)}"
    right = f"node {one_line(node.name)}"
    if node.uptime_s is not None:
        right += f", up {units.describe_duration(node.uptime_s)}"
    gap = max(3, width - len(left) - len(right))
    text = Text(left + " " * gap + right)
    text.stylize(_COLOURS[verdict.level], 1, 1 + len(verdict.level.name))
    console = _console(stream)
    console.print(text, soft_wrap=True)
    return _drawn(console)[0]


def _table(node: Node, stream: TextIO) -> list[str]:
    """Return the header and one line per row, aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=True, padding=(0, 1), show_edge=False, header_style="bold")
    for title, is_number in _COLUMNS:
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for volume in node.volumes:
        cells = _volume_cells(volume)
        for peer in volume.peers or (None,):
            table.add_row(*(Text(one_line(cell)) for cell in (*cells, *_peer_cells(volume, peer))))
            cells = [""] * len(cells)
    console = _console(stream)
    console.print(table)
    return _drawn(console)


def _console(stream: TextIO) -> Console:
    """Return a console that draws as for `stream` but into memory: nothing is half written."""
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        force_terminal=stream.isatty() or None,
        width=LINE_CELLS_MAX,
        highlight=False,
    )


def _drawn(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _volume_cells(volume: Volume) -> list[str]:
    size = "unknown" if volume.size_bytes is None else units.format_size(volume.size_bytes)
    return [volume.name, volume.role, _service(volume), _redundancy(volume), size]


def _peer_cells(volume: Volume, peer: Peer | None) -> list[str]:
    if peer is None:
        return ["none", "", "", ""]
    connected = peer.connection_state == "connected"
    behind = "unknown"
    # A node that is cut off and not up to date itself cannot know what the other has.
    can_know = connected or volume.disk_state == "up-to-date"
    if peer.out_of_sync_bytes is not None and can_know:
        behind = units.format_size(peer.out_of_sync_bytes)
    return [peer.name, _link(peer), _peer_state(peer), behind]


def _link(peer: Peer) -> str:
    if peer.connection_state != "connected":
        return peer.connection_state
    if peer.slow is not None:
        return f"slow {peer.slow.for_s:.1f} s"
    if peer.round_trip_s is None:
        return "up"
    return f"up {peer.round_trip_s * 1000:.1f} ms"


def _service(volume: Volume) -> str:
    if volume.serving:
        return "frozen" if volume.frozen else "serving"
    if volume.worker_silent:
        return "no answer"
    if volume.problem is not None:
        return "closed"
    if volume.resume_pending:
        return "resuming"
    return "not serving" if volume.role == "primary" else "standby"


def _redundancy(volume: Volume) -> str:
    """Return how many copies are known, at this moment, to hold everything."""
    linked = [peer for peer in volume.peers if peer.connection_state == "connected"]
    good = (volume.disk_state == "up-to-date") + sum(
        peer.disk_state == "up-to-date" for peer in linked
    )
    total = 1 + len(volume.peers)
    if not good:
        return "unknown"
    return f"{good} of {total} " + ("copy" if total == 1 else "copies")


def _peer_state(peer: Peer) -> str:
    if peer.replication_state == "established" and peer.disk_state != "up-to-date":
        return f"copy is {peer.disk_state}"
    return _REPLICATION_WORDS.get(peer.replication_state, peer.replication_state)


def _explanations(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the lines below the table: for each volume what is wrong, why, and what to run."""
    for volume in node.volumes:
        prefix = f"{one_line(volume.name)}: " if len(node.volumes) > 1 else ""
        finding, problem = health.judge_volume(volume), volume.problem
        why, next_step = volume.why, volume.next_step
        if problem is not None:
            yield "What", f"{prefix}{one_line(problem.what)}  [{one_line(problem.code)}]"
            why = problem.why or (why if why != problem.what else "")
            next_step = problem.next_step or next_step
        elif not why and finding.level is not Level.OK:
            why = f"{finding.sentence}."
        if not next_step and finding.level is not Level.OK:
            next_step = _otherwise_next(volume)
        facts = list(remarks(volume))
        if why:
            more = "".join(f"; {fact}" for fact in facts)
            yield "Why", prefix + one_line(f"{why.rstrip('.')}{more}." if more else why)
        else:
            yield from (("Note", prefix + one_line(f"{fact}.")) for fact in facts)
        yield from (("Given", prefix + one_line(words)) for words in permits(volume))
        if next_step:
            yield "Next", prefix + one_line(next_step)


def _otherwise_next(volume: Volume) -> str:
    """Return what to run where the daemon names nothing."""
    connected = all(peer.connection_state == "connected" for peer in volume.peers)
    if volume.role == "secondary" and not connected and volume.promotable is not None:
        # What a cut-off secondary needs is what its promotion needs.
        return volume.promotable.next_step
    if volume.space_low_bytes is not None:
        return f"make room under the backing of {volume.name} on this node"
    return ""
