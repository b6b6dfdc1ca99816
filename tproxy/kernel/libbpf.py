"""The few calls of libbpf that we need (bpf/libbpf.h, bpf/bpf.h), by ctypes. Errors are KernelError."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from functools import cache
from pathlib import Path

from tproxy.kernel.errors import KernelError

SK_MSG_VERDICT = 7  # linux/bpf.h: enum bpf_attach_type
EXIST = 2  # BPF_EXIST: update only


@cache
def _library() -> ctypes.CDLL:
    try:
        made = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError("loading libbpf.so.1", str(error), "install libbpf1") from error
    for name in (
        *("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name"),
        "bpf_program__attach_cgroup",
    ):
        getattr(made, name).restype = ctypes.c_void_p
    made.libbpf_set_print(None)  # errors come as errno; its log is for developers
    return made


class Program:
    """A loaded object file. The kernel forgets all of it when this process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        library = _library()
        self._object = library.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise _error(f"reading {path.name}")
        self._links: list[ctypes.c_void_p] = []
        if library.bpf_object__load(ctypes.c_void_p(self._object)):
            error = _error(f"loading {path.name}")
            self.close()
            raise error

    def map(self, name: str) -> Map:
        """One of its maps."""
        found = _library().bpf_object__find_map_by_name(ctypes.c_void_p(self._object), name.encode())
        return Map(_library().bpf_map__fd(ctypes.c_void_p(found)))

    def attach_cgroup(self, name: str, folder: str) -> None:
        """For every process in the cgroup; gone with us."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link = _library().bpf_program__attach_cgroup(self._program(name), fd)
        finally:
            os.close(fd)
        if not link:
            raise _error(f"attaching to the cgroup {folder}")
        self._links.append(ctypes.c_void_p(link))

    def attach_map(self, name: str, target: Map, kind: int) -> None:
        """For every socket in the map."""
        if _library().bpf_prog_attach(_library().bpf_program__fd(self._program(name)), target.fd, kind, 0):
            raise _error(f"attaching {name} to its map")

    def _program(self, name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(
            _library().bpf_object__find_program_by_name(ctypes.c_void_p(self._object), name.encode())
        )

    def close(self) -> None:
        """Detach and forget."""
        for link in self._links:
            _library().bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            _library().bpf_object__close(ctypes.c_void_p(self._object))
            self._object = None


class Map:
    """A BPF map by its descriptor, which its program owns; keys and values are bytes as C lays them out."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def update(self, key: bytes, value: bytes, flags: int = 0) -> bool:
        """False if the kernel refused it."""
        return not _library().bpf_map_update_elem(self.fd, key, value, ctypes.c_uint64(flags))

    def lookup(self, key: bytes, size: int) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(size)
        return None if _library().bpf_map_lookup_elem(self.fd, key, value) else value.raw

    def keys(self, size: int) -> list[bytes]:
        """All keys; what changes meanwhile may be missed."""
        found: list[bytes] = []
        key, following = None, ctypes.create_string_buffer(size)
        while not _library().bpf_map_get_next_key(self.fd, key, following):
            key = following.raw
            found.append(key)
        return found


def _error(what: str) -> KernelError:
    code = ctypes.get_errno()
    advice = "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed at start" if code in (1, 13) else "Linux 5.15 or newer"
    return KernelError(what, os.strerror(code), advice)
