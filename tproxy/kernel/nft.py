"""nftables through libnftables.so.1, the library behind nft(8): atomic transactions, dry runs, reading back."""

from __future__ import annotations

import ctypes
import json
from typing import Any

from tproxy.kernel.errors import KernelError

_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON, nftables/libnftables.h
_NO_LIBRARY = "install it: apt-get install libnftables1"
_ADVICE = {
    "Operation not permitted": "NET_ADMIN is missing: grant it to the init container",
    "No such file or directory": "a kernel module is missing: nft_tproxy, nft_socket, nft_fib_inet or nft_reject_inet",
}


class _Library:
    """libnftables, loaded once; one context a call."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise KernelError("loading libnftables.so.1", error, _NO_LIBRARY) from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        self.calls = library

    def run(self, text: str, dry: bool = False, flags: int = 0) -> tuple[int, str, str]:
        """Return code, output and errors of one transaction."""
        calls = self.calls
        context = calls.nft_ctx_new(0)
        if not context:
            raise KernelError("opening nftables", "libnftables gave no context", "is the kernel built with nf_tables?")
        try:
            calls.nft_ctx_buffer_output(context)
            calls.nft_ctx_buffer_error(context)
            calls.nft_ctx_set_dry_run(context, dry)
            calls.nft_ctx_output_set_flags(context, flags)
            code = calls.nft_run_cmd_from_buffer(context, text.encode())
            output = calls.nft_ctx_get_output_buffer(context) or b""
            errors = calls.nft_ctx_get_error_buffer(context) or b""
            return code, output.decode(errors="replace"), errors.decode(errors="replace")
        finally:
            calls.nft_ctx_free(context)


def check(text: str) -> None:
    """Ask the kernel whether it would take this transaction, and change nothing."""
    _run("checking the nft rules", text, dry=True)


def apply(text: str) -> None:
    """All of it or nothing."""
    _run("installing the nft rules", text, dry=False)


def chains(table: str) -> frozenset[str] | None:
    """The names of a table's chains, or None if there is no such table."""
    code, output, errors = _Library().run(f"list table inet {table}", flags=_JSON)
    if code:
        if "No such file" in errors:
            return None
        raise _error("reading the nft rules", errors)
    document: dict[str, Any] = json.loads(output)
    return frozenset(entry["chain"]["name"] for entry in document["nftables"] if "chain" in entry)


def _run(doing: str, text: str, dry: bool) -> None:
    code, _, errors = _Library().run(text, dry)
    if code:
        raise _error(doing, errors)


def _error(doing: str, errors: str) -> KernelError:
    said = " ".join(errors.split()) or "libnftables said no without a reason"
    advice = next((advice for text, advice in _ADVICE.items() if text in errors), "")
    return KernelError(doing, said[:300], advice)
