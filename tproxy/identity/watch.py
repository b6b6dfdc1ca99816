"""Whether files are other ones than they were, and waiting until they are: inotify, and a look at the files anyway."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from asyncinotify import Inotify, Mask

_NAMES = Mask.MOVED_TO | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM
_CONTENTS = Mask.CLOSE_WRITE | Mask.MODIFY | Mask.ATTRIB
LOOK = 5.0  # seconds: network file systems and exhausted inotify instances tell nothing
SETTLE = 0.05  # seconds: a rotation writes more than one file


class Watch:
    """Whether files, and those in folders, are other ones than they were: time, inode and size, symlinks followed."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._inotify: Inotify | None = None
        self._watched: dict[Path, int] = {}  # folder -> inode
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """True once after each change; a missing file is one more state that it can be in."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    async def change(self) -> None:
        """Returns once after each change."""
        while not self.changed():
            await self._event()

    async def _event(self) -> None:
        """Something has happened in a folder of ours, or it is time to look anyway."""
        try:
            inotify = self._watching()
            if self._look() == self._seen:  # nothing happened before we began to watch
                async with asyncio.timeout(LOOK):
                    await inotify.get()
            await asyncio.sleep(SETTLE)
        except TimeoutError:
            return
        except OSError:  # no instance left (inotify(7), max_user_instances), or a folder went away
            self._drop()
            await asyncio.sleep(1.0)

    def _watching(self) -> Inotify:
        """The same as before, as long as the folders are the same ones: closing one takes the kernel many ms."""
        wanted = self._folders()
        folders = {folder: folder.stat().st_ino for folder in wanted}
        if self._inotify is None or folders != self._watched:
            self._drop()
            self._inotify, self._watched = Inotify(), folders
            for folder, mask in wanted.items():
                self._inotify.add_watch(folder, mask | Mask.ONLYDIR)
        return self._inotify

    def _drop(self) -> None:
        old, self._inotify = self._inotify, None
        if old is not None:
            threading.Thread(target=old.close, daemon=True).start()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # a thread begun then never runs, and start() waits for it
            self._drop()

    def _folders(self) -> dict[Path, Mask]:
        """Where names are (a kubelet swaps ``..data`` there), and where the files themselves are, and what matters.

        Beside a folder of ours lies what is not ours, a log perhaps that is written all the time: only names count.
        """
        found: dict[Path, Mask] = {}
        for path in map(Path, self._paths):
            mask = _NAMES if path.is_dir() else _NAMES | _CONTENTS
            for folder, what in ((path.parent, mask), (path.resolve().parent, mask), (path, _NAMES | _CONTENTS)):
                found[folder] = found.get(folder, what) | what
        return {folder: mask for folder, mask in found.items() if folder.is_dir()}

    def _look(self) -> list[tuple[str, int, int, int] | None]:
        return [seen for path in map(Path, self._paths) for seen in (_state(path), *map(_state, _inside(path)))]


def _inside(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir()) if path.is_dir() else []
    except OSError:
        return []


def _state(path: Path) -> tuple[str, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_mtime_ns, found.st_ino, found.st_size
