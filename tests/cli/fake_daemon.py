"""A daemon for the tests of `replctl`: HTTP over a Unix socket, answering what it was told to.

It records every request. An answer is (status, object), raw bytes to send instead of HTTP, or a
list of answers of which the last one stays.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Answer = tuple[int, Any] | bytes


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    daemon: FakeDaemon

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves before it read everything is part of some tests.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self._answer(json.loads(self.rfile.read(length)))

    def _answer(self, body: Any) -> None:
        answer = self.server.daemon.next_answer(self.command, self.path, body)
        if isinstance(answer, bytes):
            self.wfile.write(answer)
            return
        status, value = answer
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FakeDaemon:
    """Answers on `socket_path` while it is open; use it in a `with` statement."""

    def __init__(self, folder: Path) -> None:
        self.socket_path = str(folder / "repld.sock")
        self.requests: list[tuple[str, str, Any]] = []
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._lock = threading.Lock()
        self._server = _Server(self.socket_path, _Handler)
        self._server.daemon = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeDaemon:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Answer requests of `method` and `path` with `answers` in turn; the last one stays."""
        self._answers[(method, path)] = list(answers)

    def serve_status(self, status: dict[str, Any]) -> None:
        """Answer all questions about the state from one status object."""
        self.on("GET", "/v1/status", (200, status))
        for volume in status["volumes"]:
            self.on("GET", f"/v1/volumes/{volume['name']}", (200, volume))

    def next_answer(self, method: str, path: str, body: Any) -> Answer:
        with self._lock:
            self.requests.append((method, path, body))
            answers = self._answers.get((method, path))
            if answers is None:
                return (404, {"message": "no such route"})
            return answers.pop(0) if len(answers) > 1 else answers[0]
