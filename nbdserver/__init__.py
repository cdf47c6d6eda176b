"""An NBD server that knows nothing of replication.

`handshake` and `transmission` are sans-IO: bytes in, events or requests out. `connection` drives
one negotiated socket, `server` accepts and negotiates, `file_backend` serves a plain file. Who
wants to serve something else implements `export.Backend` and hands it to `connection.Connection`.

Source of every rule: the NBD protocol document, proto.md of the NetworkBlockDevice project.
"""
