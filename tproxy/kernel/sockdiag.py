"""What a TCP socket holds unread, asked of the kernel by its addresses (sock_diag(7), linux/inet_diag.h)."""

from __future__ import annotations

import socket
import struct

from tproxy.core.address import Endpoint

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
INET_DIAG_SKMEMINFO = 7
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE = 72  # struct inet_diag_msg


class SockDiag:
    """One netlink socket for all questions."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._netlink.settimeout(1.0)  # the kernel answers at once

    def close(self) -> None:
        """No more questions."""
        self._netlink.close()

    def unread(self, local: Endpoint, remote: Endpoint) -> int | None:
        """Bytes of receive memory in use by the socket with these names; None if there is none."""
        v6 = local.ip.version == 6
        names = local.ip.packed.ljust(16, b"\0") + remote.ip.packed.ljust(16, b"\0")
        body = struct.pack(
            "=BBBBI",
            socket.AF_INET6 if v6 else socket.AF_INET,
            socket.IPPROTO_TCP,
            1 << (INET_DIAG_SKMEMINFO - 1),
            0,
            ~0 & 0xFFFFFFFF,
        )
        body += struct.pack("!HH", local.port, remote.port) + names + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        self._netlink.send(_HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + body)
        return self._memory(self._netlink.recv(8192))

    @staticmethod
    def _memory(answer: bytes) -> int | None:
        _length, kind, *_ = _HEADER.unpack_from(answer)
        if kind != SOCK_DIAG_BY_FAMILY:
            return None  # NLMSG_ERROR: no such socket
        at = _HEADER.size + _MESSAGE
        while at + _ATTRIBUTE.size <= len(answer):
            length, kind = _ATTRIBUTE.unpack_from(answer, at)
            if kind == INET_DIAG_SKMEMINFO:
                return int.from_bytes(answer[at + 4 : at + 8], "little")  # SK_MEMINFO_RMEM_ALLOC
            at += max(4, (length + 3) & ~3)
        return None
