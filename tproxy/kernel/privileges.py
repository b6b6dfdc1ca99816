"""Becoming uid 1337 with one capability: enough to mark packets and bind foreign addresses, no more.

Sources: capabilities(7), capset(2), prctl(2). SO_MARK needs NET_RAW since Linux 5.17, NET_ADMIN before; so
a sidecar that is broken into cannot change the rules.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket

from tproxy.kernel.errors import KernelError
from tproxy.kernel.sock import CAPABILITY_ADVICE, IP_TRANSPARENT, SO_MARK

NET_ADMIN, NET_RAW = 12, 13  # linux/capability.h
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 4, 8, 38  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def effective() -> frozenset[int]:
    """The numbers of the capabilities that this process can use now."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 -- proc, not a path of ours
        bits = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return frozenset(number for number in range(64) if bits >> number & 1)


def drop(uid: int, gid: int) -> None:
    """Become ``uid`` for good, keeping NET_RAW (NET_ADMIN on older kernels). Does nothing but check if we are ``uid``.

    Any other uid is refused: the rules exempt exactly this one, and our own connections would come back to us.
    """
    if os.geteuid() not in (0, uid):
        raise KernelError(
            "starting", f"runs as uid {os.geteuid()}", f"the rules exempt uid {uid}: start as root or {uid}"
        )
    if os.geteuid() != uid:
        keep = NET_RAW if _kernel() >= (5, 17) else NET_ADMIN
        if keep not in effective():
            raise KernelError("starting", "CAP_NET_RAW and CAP_NET_ADMIN are missing", CAPABILITY_ADVICE)
        _call("prctl", _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except PermissionError as error:
            advice = "grant SETUID and SETGID, or start as that user with NET_RAW as ambient capability"
            raise KernelError(f"becoming uid {uid}", error.strerror, advice) from error
        _set(1 << keep)
    _call("prctl", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    probe()


def keep_secrets() -> None:
    """No core dump may hold a key: neither now nor of a child; nor may processes of our uid look into our memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def probe() -> None:
    """Prove on a real socket that marks and transparent binds are allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 2)
        except PermissionError as error:
            raise KernelError("marking a socket", error.strerror, CAPABILITY_ADVICE) from error


def raise_open_files() -> int:
    """Use all the open files that we are allowed; the number is returned."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)))


def _set(bits: int) -> None:
    header, data = _Header(_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    data[0] = _Data(bits & 0xFFFFFFFF, bits & 0xFFFFFFFF, 0)
    data[1] = _Data(bits >> 32, bits >> 32, 0)
    _call("capset", _libc.capset(ctypes.byref(header), data))


def _call(name: str, result: int) -> None:
    if result:
        raise KernelError(name, os.strerror(ctypes.get_errno()))
