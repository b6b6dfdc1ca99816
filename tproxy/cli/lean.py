"""What other packages import and this process never calls is left out of its memory.

uvloop and asyncio import Python's ``ssl``, which loads a second OpenSSL beside the one that makes our TLS; ``hashlib``
does, too, and has its own functions without it. prometheus_client imports servers and clients of HTTP for ways of
serving that we do not take. Together that is 9 MiB of 50 in a gateway (``/proc/PID/smaps_rollup``, Rss).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NoReturn

UNUSED = ("ssl", "http.server", "urllib.request", "wsgiref.simple_server")


class _Absent(ModuleType):
    """Has every name, so that it can be imported, inherited from and caught, but nothing that can be called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():
            return 0  # a constant

        def refuse(_: type, *__: Any, **___: Any) -> NoReturn:
            raise RuntimeError(f"{self.__name__}.{name} was left out of this process (tproxy/cli/lean.py)")

        made = type(name, (OSError,), {"__module__": self.__name__, "__new__": refuse})
        setattr(self, name, made)
        return made


def leave_out() -> None:
    """Before the first of those that import them. What is there already stays."""
    for name in UNUSED:
        sys.modules.setdefault(name, _Absent(name))
    sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # importing it is an ImportError then
