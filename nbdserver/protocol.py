"""Numbers and layouts of the NBD protocol, under the names that proto.md gives them.

All integers on the wire are big-endian. Commands, flags and errors are plain integers because
they are compared for every request; what appears only in the handshake is an `IntEnum`, which
prints its own name. This file holds no behaviour.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

NBD_DEFAULT_PORT: Final = 10809

# Handshake: greeting, client flags, option haggling ("Fixed newstyle negotiation").

NBD_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
NBD_OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
NBD_REP_MAGIC: Final = 0x0003E889045565A9

NBD_FLAG_FIXED_NEWSTYLE: Final = 1 << 0
NBD_FLAG_NO_ZEROES: Final = 1 << 1
NBD_FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
NBD_FLAG_C_NO_ZEROES: Final = 1 << 1

GREETING: Final = Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = Struct(">I")
OPTION_HEADER: Final = Struct(">QII")  # IHAVEOPT, option, length of the data
OPTION_REPLY: Final = Struct(">QIII")  # magic, option, reply type, length of the data
EXPORT_NAME_REPLY: Final = Struct(">QH")  # size, transmission flags; then zeroes
EXPORT_NAME_ZEROES_BYTES: Final = 124

INFO_EXPORT: Final = Struct(">HQH")  # NBD_INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE: Final = Struct(">HIII")  # NBD_INFO_BLOCK_SIZE, minimum, preferred, maximum
U16: Final = Struct(">H")
U32: Final = Struct(">I")

STRING_BYTES_MAX: Final = 4096  # names, descriptions, error texts


class Option(IntEnum):
    """`NBD_OPT_*`."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """`NBD_REP_*`: the types of replies to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9
    ERR_EXT_HEADER_REQD = (1 << 31) + 10


class Info(IntEnum):
    """`NBD_INFO_*`."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


# Transmission flags of an export.

NBD_FLAG_HAS_FLAGS: Final = 1 << 0
NBD_FLAG_READ_ONLY: Final = 1 << 1
NBD_FLAG_SEND_FLUSH: Final = 1 << 2
NBD_FLAG_SEND_FUA: Final = 1 << 3
NBD_FLAG_ROTATIONAL: Final = 1 << 4
NBD_FLAG_SEND_TRIM: Final = 1 << 5
NBD_FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
NBD_FLAG_SEND_DF: Final = 1 << 7
NBD_FLAG_CAN_MULTI_CONN: Final = 1 << 8
NBD_FLAG_SEND_RESIZE: Final = 1 << 9
NBD_FLAG_SEND_CACHE: Final = 1 << 10
NBD_FLAG_SEND_FAST_ZERO: Final = 1 << 11
NBD_FLAG_BLOCK_STATUS_PAYLOAD: Final = 1 << 12

# Requests.

NBD_REQUEST_MAGIC: Final = 0x25609513
NBD_EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71

REQUEST: Final = Struct(">IHH8sQI")  # magic, flags, type, cookie, offset, length
EXTENDED_REQUEST: Final = Struct(">IHH8sQQ")
REQUEST_BYTES: Final = REQUEST.size
EXTENDED_REQUEST_BYTES: Final = EXTENDED_REQUEST.size

# Replies: simple, structured ("chunks"), and chunks with extended headers.

NBD_SIMPLE_REPLY_MAGIC: Final = 0x67446698
NBD_STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
NBD_EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

SIMPLE_REPLY: Final = Struct(">II8s")  # magic, error, cookie
STRUCTURED_CHUNK: Final = Struct(">IHH8sI")  # magic, flags, type, cookie, length
EXTENDED_CHUNK: Final = Struct(">IHH8sQQ")  # magic, flags, type, cookie, request's offset, length
SIMPLE_REPLY_BYTES: Final = SIMPLE_REPLY.size

NBD_REPLY_FLAG_DONE: Final = 1 << 0

NBD_REPLY_TYPE_NONE: Final = 0
NBD_REPLY_TYPE_OFFSET_DATA: Final = 1
NBD_REPLY_TYPE_OFFSET_HOLE: Final = 2
NBD_REPLY_TYPE_BLOCK_STATUS: Final = 5
NBD_REPLY_TYPE_BLOCK_STATUS_EXT: Final = 6
NBD_REPLY_TYPE_ERROR: Final = (1 << 15) + 1
NBD_REPLY_TYPE_ERROR_OFFSET: Final = (1 << 15) + 2

OFFSET_HOLE: Final = Struct(">QI")  # offset, length
ERROR: Final = Struct(">IH")  # error, length of the text that follows
STATUS_DESCRIPTOR: Final = Struct(">II")  # length, flags
STATUS_DESCRIPTOR_EXT: Final = Struct(">QQ")
U64: Final = Struct(">Q")

NBD_CMD_READ: Final = 0
NBD_CMD_WRITE: Final = 1
NBD_CMD_DISC: Final = 2
NBD_CMD_FLUSH: Final = 3
NBD_CMD_TRIM: Final = 4
NBD_CMD_CACHE: Final = 5
NBD_CMD_WRITE_ZEROES: Final = 6
NBD_CMD_BLOCK_STATUS: Final = 7
NBD_CMD_RESIZE: Final = 8

NBD_CMD_FLAG_FUA: Final = 1 << 0
NBD_CMD_FLAG_NO_HOLE: Final = 1 << 1
NBD_CMD_FLAG_DF: Final = 1 << 2
NBD_CMD_FLAG_REQ_ONE: Final = 1 << 3
NBD_CMD_FLAG_FAST_ZERO: Final = 1 << 4
NBD_CMD_FLAG_PAYLOAD_LEN: Final = 1 << 5

PAYLOAD_BYTES_MAX: Final = 32 << 20  # what every client may send or read in one request

# Metadata contexts: what the bits of a block's status mean ("base:allocation").

NBD_STATE_HOLE: Final = 1 << 0
NBD_STATE_ZERO: Final = 1 << 1

# Error numbers on the wire. They equal Linux's, but the wire's list is closed.

NBD_EPERM: Final = 1
NBD_EIO: Final = 5
NBD_ENOMEM: Final = 12
NBD_EINVAL: Final = 22
NBD_ENOSPC: Final = 28
NBD_EOVERFLOW: Final = 75
NBD_ENOTSUP: Final = 95
NBD_ESHUTDOWN: Final = 108
