"""Just enough of QMP, qemu's control protocol, to start a mirror job and wait for it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.processes import ContenderBroke

ANSWER_DEADLINE_S = 20.0


class Monitor:
    """One connection to a QMP socket; a context manager."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(ANSWER_DEADLINE_S)
        self._sock.connect(str(path))
        self._lines = self._sock.makefile("r")
        self._next_object()  # the greeting
        self.ask("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._sock.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Execute a command and return its result. Raises ContenderBroke if it is refused."""
        request = {"execute": command, "arguments": arguments}
        self._sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._next_object()
            if "error" in answer:
                raise ContenderBroke(f"qemu refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def _next_object(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ContenderBroke("qemu closed its monitor")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer
