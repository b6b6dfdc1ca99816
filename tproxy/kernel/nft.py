"""nftables through libnftables.so.1, the same calls as the distribution's Python module (libnftables(3)).

A text is one transaction: all of it holds, or nothing. Each call opens its own context, in the caller's namespace.

>>> apply(rules.nft())  # doctest: +SKIP
>>> table_json("tproxy_capture")["nftables"]  # doctest: +SKIP
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

from tproxy.kernel.errors import KernelError

LIBRARY = "libnftables.so.1"
JSON = 1 << 4  # nftables/libnftables.h: NFT_CTX_OUTPUT_JSON
ADVICE = (
    (
        "Operation not permitted",
        "NET_ADMIN is missing: grant it to the init container (securityContext.capabilities.add)",
    ),
    (
        "cache initialization failed",
        "is nf_tables in this kernel? `modprobe nf_tables` on the node",
    ),
    (
        "No such file or directory",
        "the kernel lacks an expression: `modprobe -a nft_tproxy nft_socket nft_fib_inet nft_reject_inet` on the node",
    ),
    (
        "Operation not supported",
        "the kernel is older than 5.10, which can refuse in prerouting and tells wildcard listeners apart",
    ),
    ("Device or resource busy", "another program changes this table; run it again"),
    ("syntax error", "libnftables is too old: 1.0.2 or newer is needed"),
)


def check(text: str) -> None:
    """Let the kernel judge a transaction without making it: what passes here fails later only by a race."""
    _run(text, "checking the rules", dry_run=True)


def apply(text: str) -> None:
    """Make a transaction."""
    _run(text, "installing the rules")


def table_json(name: str) -> dict[str, Any] | None:
    """``table inet NAME`` as it stands in the kernel, in the form of libnftables-json(5); None if there is none."""
    doing = f"reading table inet {name}"
    tables = _json(_run("list tables inet", doing, flags=JSON), doing)
    if not any(entry.get("table", {}).get("name") == name for entry in tables["nftables"]):
        return None
    return _json(_run(f"list table inet {name}", doing, flags=JSON), doing)


def _json(text: str, doing: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text or '{"nftables": []}')
    except ValueError as error:
        advice = "install the distribution's build, or look yourself: nft list ruleset"
        raise KernelError(doing, "this libnftables was built without JSON", advice) from error
    return found


def _run(text: str, doing: str, *, dry_run: bool = False, flags: int = 0) -> str:
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise KernelError(doing, "libnftables gives no context", "is there memory left?")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_set_dry_run(context, dry_run)
        library.nft_ctx_output_set_flags(context, flags)
        failed = library.nft_run_cmd_from_buffer(context, text.encode())
        said: bytes = library.nft_ctx_get_error_buffer(context)
        output: bytes = library.nft_ctx_get_output_buffer(context)
    finally:
        library.nft_ctx_free(context)
    if failed:
        raise _error(doing, said.decode(errors="replace"))
    return output.decode(errors="replace")


def _error(doing: str, said: str) -> KernelError:
    """The first fault of what libnftables says, and what to do about it; the place in the text is of use to nobody."""
    first = said.strip().splitlines()[0] if said.strip() else "libnftables gives no reason"
    advice = next((advice for words, advice in ADVICE if words in said), "")
    return KernelError(doing, first.partition("Error: ")[2] or first, advice)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise KernelError(f"loading {LIBRARY}", error, "apt-get install libnftables1") from error
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", pointer, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [pointer]),
        ("nft_ctx_buffer_output", ctypes.c_int, [pointer]),
        ("nft_ctx_buffer_error", ctypes.c_int, [pointer]),
        ("nft_ctx_set_dry_run", None, [pointer, ctypes.c_bool]),
        ("nft_ctx_output_set_flags", None, [pointer, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [pointer, text]),
        ("nft_ctx_get_error_buffer", text, [pointer]),
        ("nft_ctx_get_output_buffer", text, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


__all__ = ["apply", "check", "table_json"]
