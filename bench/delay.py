"""A TCP proxy that delivers every byte a fixed time after it came: a link with a long way.

    python -m bench.delay --listen PORT --target PORT --one-way-ms 5

For one connection at a time between two nodes on loopback. Order and bytes stay as they are, no
bandwidth is limited and nothing is lost; what is in flight is unbounded, as on a long wire.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections import deque

RECEIVE_BYTES = 1 << 20


class DelayLine:
    """Bytes under way in one direction. Time is an argument."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._ended_s: float | None = None

    def push(self, data: bytes, now_s: float) -> None:
        """These bytes enter the wire."""
        self._under_way.append((now_s + self._delay_s, data))

    def end(self, now_s: float) -> None:
        """The sender has closed: the receiver learns it as late as of everything else."""
        self._ended_s = now_s + self._delay_s

    def arrived(self, now_s: float) -> bytes:
        """Take what has come through."""
        out = []
        while self._under_way and self._under_way[0][0] <= now_s:
            out.append(self._under_way.popleft()[1])
        return b"".join(out)

    def over(self, now_s: float) -> bool:
        """Whether the end has come through, and everything before it."""
        return self._ended_s is not None and not self._under_way and self._ended_s <= now_s

    @property
    def ended(self) -> bool:
        return self._ended_s is not None

    @property
    def next_s(self) -> float | None:
        """When the next thing comes through."""
        return self._under_way[0][0] if self._under_way else self._ended_s


def pump(dialer: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Carry bytes both ways until one side has closed."""
    lines = {dialer: DelayLine(delay_s), target: DelayLine(delay_s)}
    other = {dialer: target, target: dialer}
    while True:
        open_ends = [sock for sock, line in lines.items() if not line.ended]
        moments = [line.next_s for line in lines.values() if line.next_s is not None]
        wait_s = max(0.0, min(moments) - time.monotonic()) if moments else None
        # select takes microseconds where epoll rounds up to a millisecond.
        readable, _, _ = select.select(open_ends, [], [], wait_s)
        now_s = time.monotonic()
        for sock in readable:
            if data := sock.recv(RECEIVE_BYTES):
                lines[sock].push(data, now_s)
            else:
                lines[sock].end(now_s)
        for sock, line in lines.items():
            if data := line.arrived(now_s):
                other[sock].sendall(data)
            if line.over(now_s):
                return


def serve(listen_port: int, target_port: int, delay_s: float) -> None:
    """Accept for ever; one connection is carried at a time."""
    with socket.create_server(("127.0.0.1", listen_port)) as listener:
        print("ready", flush=True)
        while True:
            dialer, _ = listener.accept()
            with dialer:
                try:
                    target = socket.create_connection(("127.0.0.1", target_port))
                except OSError:
                    continue
                with target:
                    for sock in (dialer, target):
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    try:
                        pump(dialer, target, delay_s)
                    except OSError:
                        continue


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.delay", description=__doc__)
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--target", type=int, required=True, metavar="PORT")
    parser.add_argument("--one-way-ms", type=float, required=True)
    parsed = parser.parse_args()
    serve(parsed.listen, parsed.target, parsed.one_way_ms / 1000)


if __name__ == "__main__":
    main()
