"""The two error families of the NBD edge.

A `ClientError` is the client's fault: it ends that connection, is logged once and touches nobody
else. A `LocalError` is ours: it is never swallowed. Neither is ever raised to express that a
connection simply ended.
"""


class ClientError(Exception):
    """The client broke a rule; the text says which, and the connection must be dropped."""


class HandshakeViolation(ClientError):
    """Bytes before transmission that no conforming client sends, or too many of them."""


class HandshakeLimit(HandshakeViolation):
    """A violation that is one only because of a limit; `limit` is its name."""

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text)
        self.limit = limit


class TransmissionViolation(ClientError):
    """Bytes after the handshake from which the stream cannot be followed any further."""


class ClientStalled(ClientError):
    """The client did not send or take the next bytes within the time allowed for it."""


class LocalError(Exception):
    """This program broke its own rule, for example a request that was answered twice."""


class ListenError(OSError):
    """An address cannot be listened on. `address` is printable; the text says why."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"cannot listen on {address}: {why}")
        self.address = address
        self.why = why
