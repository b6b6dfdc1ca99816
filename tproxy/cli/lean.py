"""What other packages import and this process never calls is left out of its memory.

uvloop and asyncio import Python's ``ssl``, which loads a second OpenSSL beside the one that makes our TLS; ``hashlib``
does, too, and has its own functions without it. With the servers of prometheus_client (``admin/prometheus.py``) that is
5 MiB of 50 in a gateway (``/proc/PID/smaps_rollup``, Rss).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn


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
    sys.modules.setdefault("ssl", _Absent("ssl"))
    sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # importing it is an ImportError then
    import_module("tproxy.admin.prometheus")
