"""Whether files are other ones than they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Watch:
    """Whether files are other ones than they were: time, inode and size, symlinks followed."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """True once after each change; a missing file is one more state that it can be in."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> list[tuple[int, int, int] | None]:
        seen: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                found = Path(path).stat()
            except OSError:
                seen.append(None)
            else:
                seen.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return seen
