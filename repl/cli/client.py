"""HTTP/JSON over the daemon's control socket, with the standard library only.

It owns what can go wrong on the way: no daemon, no permission, no answer, an answer that cannot be
understood. Each becomes one of `repl/errors.py`; an error that the daemon reports is raised as that
error. It never repeats a request: whether a verb was carried out is for the caller to look up.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from repl import errors

READ_TIMEOUT_S = 10.0
"""How long the daemon may take to answer a question before it counts as unreachable."""
ACTION_TIMEOUT_S = 120.0
"""How long a verb may take: a demotion drains and syncs before it answers."""
RESPONSE_BYTES_MAX = 64 << 20
FOLLOW_TIMEOUT_S = 30.0
"""A stream of events shows life every few seconds; a longer silence is a daemon that hangs."""
CONNECT_PAUSE_S = 0.02
_START = "start it:  systemctl start repld   (or in the foreground:  repld --config FILE)"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.settimeout(self.timeout)
            self._connect(time.monotonic() + (self.timeout or 0.0))
        except OSError:
            self.sock.close()
            raise

    def _connect(self, deadline_s: float) -> None:
        """A Unix socket refuses at once while as many as it queues wait to be accepted."""
        while True:
            try:
                self.sock.connect(self._socket_path)
                return
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(CONNECT_PAUSE_S)


class Client:
    """One daemon, named by the path of its control socket. Each call is one connection."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    def status(self) -> dict[str, Any]:
        """Return the status of the node and all its volumes (design §11)."""
        return self._request("GET", "/v1/status")

    def version(self) -> dict[str, Any]:
        """Return what the daemon says of itself, at least `version`."""
        return self._request("GET", "/v1/version")

    def volume(self, name: str, timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
        """Return the status of one volume, an element of the status's `volumes`."""
        return self._request("GET", f"/v1/volumes/{quote(name)}", timeout_s=timeout_s)

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the volume's metadata as the daemon describes it."""
        return self._request("GET", f"/v1/volumes/{quote(name)}/metadata")

    def splitbrain(self, name: str) -> dict[str, Any]:
        """Return both sides of the volume's split-brain, or that there is none."""
        return self._request("GET", f"/v1/volumes/{quote(name)}/splitbrain")

    def act(
        self,
        name: str,
        verb: str,
        arguments: dict[str, Any],
        timeout_s: float = ACTION_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Carry out `verb` on the volume and return the daemon's reply."""
        path = f"/v1/volumes/{quote(name)}/{verb}"
        return self._request("POST", path, arguments, timeout_s=timeout_s)

    def events(
        self, after: int | None, volume: str | None, *, follow: bool
    ) -> Iterator[dict[str, Any]]:
        """Yield the daemon's events; with `follow` as they come, until it ends the stream."""
        query = {"follow": "1"} if follow else {}
        query |= {"after": str(after)} if after is not None else {}
        query |= {"volume": volume} if volume is not None else {}
        connection = self._connected(FOLLOW_TIMEOUT_S if follow else READ_TIMEOUT_S)
        try:
            connection.request("GET", f"/v1/events?{urlencode(query)}")
            response = connection.getresponse()
            if response.status != http.client.OK:
                self._understood(response.status, response.read(RESPONSE_BYTES_MAX + 1))
            while line := response.readline(RESPONSE_BYTES_MAX):
                if line.strip():
                    yield self._understood(http.client.OK, line)
        except (OSError, http.client.HTTPException) as failure:
            raise self._broken_off("GET", failure) from failure
        finally:
            connection.close()

    def _connected(self, timeout_s: float) -> _UnixConnection:
        connection = _UnixConnection(self.socket_path, timeout_s)
        try:
            connection.connect()
        except OSError as failure:
            connection.close()
            raise self._not_connected(failure) from failure
        return connection

    def _request(
        self,
        method: str,
        path: str,
        arguments: dict[str, Any] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> dict[str, Any]:
        connection = self._connected(timeout_s)
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        body = None if arguments is None else json.dumps(arguments)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            status, data = response.status, response.read(RESPONSE_BYTES_MAX + 1)
            if response.length and len(data) <= RESPONSE_BYTES_MAX:
                raise http.client.IncompleteRead(data, response.length)
        except TimeoutError as failure:
            raise self._no_answer(method, timeout_s) from failure
        except (OSError, http.client.HTTPException) as failure:
            raise self._broken_off(method, failure) from failure
        finally:
            connection.close()
        return self._understood(status, data)

    def _not_connected(self, failure: OSError) -> errors.ReplError:
        if isinstance(failure, PermissionError):
            return errors.PermissionRefused(
                f"Not allowed to use the control socket {self.socket_path}.",
                "this user may not write to the socket or look into its folder",
                f"run the command as root, or see who may:  ls -l {self.socket_path}",
            )
        if isinstance(failure, TimeoutError):
            return self._no_answer("GET", READ_TIMEOUT_S)
        reasons = {
            FileNotFoundError: "there is no such socket",
            ConnectionRefusedError: "nothing listens on it",
        }
        reason = reasons.get(type(failure), failure.strerror or str(failure))
        return errors.DaemonUnreachable(
            f"No repld answers on {self.socket_path}.",
            f"{reason}; repld is not running, or it uses another socket (--socket, $REPL_SOCKET)",
            _START,
        )

    def _no_answer(self, method: str, timeout_s: float) -> errors.ReplError:
        if method == "GET":
            return errors.DaemonUnreachable(
                f"repld on {self.socket_path} does not answer.",
                f"it was asked and said nothing for {timeout_s:g} s",
                "see what it does:  systemctl status repld",
            )
        return errors.TimedOut(
            f"repld did not finish within {timeout_s:g} s.",
            "the request may still be carried out; nothing was repeated",
            "see what became of it:  replctl status",
        )

    def _broken_off(self, method: str, failure: Exception) -> errors.ReplError:
        outcome = "" if method == "GET" else "; whether it was carried out is not known"
        return errors.DaemonUnreachable(
            f"repld on {self.socket_path} broke off before it answered.",
            f"{str(failure) or type(failure).__name__}{outcome}",
            "look again:  replctl status   (what happened:  journalctl --unit repld)",
        )

    def _understood(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            if len(data) > RESPONSE_BYTES_MAX:
                raise ValueError(f"longer than {RESPONSE_BYTES_MAX} bytes")
            reply = json.loads(data)
            if not isinstance(reply, dict):
                raise ValueError("not an object")
            if status == http.client.OK:
                return reply
            if not isinstance(reply.get("error"), dict):
                raise ValueError("no error is named")
            error = errors.from_json(reply["error"])
        except (ValueError, TypeError, RecursionError) as failure:
            raise errors.ReplError(
                f"The answer on {self.socket_path} cannot be understood.",
                f"HTTP status {status}: {failure}",
                "compare the versions of both sides:  replctl version",
            ) from failure
        raise error
