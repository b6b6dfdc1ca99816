"""Modules that mypyc compiled: taken only while the sources that stand here are those they were made from.

``setup.py`` compiles what ``native.txt`` names into ``_native`` and writes the SHA-256 of each source beside it, as
sha256sum does. The modules know each other's layout: all of them are taken, or none. After an edit, without a compiler
and with TPROXY_PURE=1 Python runs what stands in the sources: the same, slower. ``make native`` compiles anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType

HERE = os.path.dirname(__file__)  # noqa: PTH120 -- each process imports this file first: without pathlib it costs nothing
LIBRARY = "tproxy__mypyc"  # what all of them share


class Finder:
    """For ``sys.meta_path``. The sources are read when the first of the modules is asked for."""

    def __init__(self, package: str, pure: bool) -> None:
        self._root, self._folder = os.path.dirname(package), f"{package}/_native"  # noqa: PTH120
        self._why_not = "TPROXY_PURE is set" if pure else None
        self._built = {} if pure else self._read()

    def _read(self) -> dict[str, tuple[str, str]]:
        """Name to source and hash; the first line says why there are none."""
        try:
            with open(f"{self._folder}/built_from", encoding="utf-8") as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except FileNotFoundError:
            lines = []
        if not lines or lines[0].startswith("#"):
            self._why_not = (
                lines[0].lstrip("# ")
                if lines
                else "its modules were never compiled; make native, or install it where a C compiler is"
            )
            return {}
        pairs = [line.split("  ", 1) for line in lines]
        return {path.removesuffix(".py").replace("/", "."): (path, digest) for digest, path in pairs}

    @property
    def why_not(self) -> str:
        """Why Python runs instead; empty when what was compiled does."""
        if self._why_not is None:
            self._why_not = self._differs()
            if not self._why_not:
                try:
                    import_module(LIBRARY)
                except ImportError as error:
                    self._why_not = str(error)
        return self._why_not

    def _differs(self) -> str:
        from hashlib import sha256  # a sidecar needs neither

        for path, digest in self._built.values():
            try:
                with open(f"{self._root}/{path}", "rb") as file:  # noqa: PTH123
                    same = sha256(file.read()).hexdigest() == digest
            except OSError as error:
                return str(error)
            if not same:
                return f"{path} is newer than what was compiled: make native"
        return ""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a compiled module is."""
        if name != LIBRARY and (name not in self._built or self.why_not):
            return None
        file = f"{self._folder}/{name}{EXTENSION_SUFFIXES[0]}"
        return ModuleSpec(name, ExtensionFileLoader(name, file), origin=file)


FINDER = Finder(HERE, os.environ.get("TPROXY_PURE", "") not in ("", "0"))
sys.meta_path.insert(0, FINDER)
