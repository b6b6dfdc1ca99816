"""A directory of YAML files as the source of configuration: read whole, watched, read again."""

from __future__ import annotations

from pathlib import Path

from tproxy.core.fields import ConfigError
from tproxy.gateway.objects import Object, parse
from tproxy.identity.watch import Watch

_SUFFIXES = (".yaml", ".yml", ".json")
_LARGEST = 64 * 1024 * 1024  # bytes of a file


class Directory:
    """The objects in a directory. What a kubelet mounts (names that begin with ``..``) is seen through its links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = self._list()
        self._watch = self._watched()

    def read(self) -> tuple[list[Object], list[ConfigError]]:
        """All objects in the order of file names, and what could not be read. ConfigError if there is no directory."""
        objects: list[Object] = []
        errors: list[ConfigError] = []
        try:
            paths = self._entries()
        except OSError as error:
            raise ConfigError(
                str(self._folder), "", f"is not a directory that can be read: {error.strerror}"
            ) from error
        for path in paths:
            for found in _parsed(path):
                if isinstance(found, Object):
                    objects.append(found)
                else:
                    errors.append(found)
        return objects, errors

    async def change(self) -> None:
        """Returns once after each change of any file, or of which files there are."""
        if self._list() == self._files:
            await self._watch.change()
        self._files = self._list()
        self._watch = self._watched()

    def _list(self) -> list[Path]:
        try:
            return self._entries()
        except OSError:
            return []

    def _entries(self) -> list[Path]:
        return sorted(p for p in self._folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))

    def _watched(self) -> Watch:
        inside = self._folder / "new.yaml"  # it need not be there: its folder is what is watched
        return Watch([str(self._folder), str(inside), *map(str, self._files)])


def _parsed(path: Path) -> list[Object | ConfigError]:
    try:
        if path.stat().st_size > _LARGEST:
            return [ConfigError(str(path), "", f"is larger than {_LARGEST >> 20} MiB")]
        if not path.is_file():
            return [ConfigError(str(path), "", "is no file; folders inside the directory are not looked at")]
        return list(parse(path.read_text(encoding="utf-8"), str(path)))
    except OSError as error:
        return [ConfigError(str(path), "", f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return [ConfigError(str(path), "", f"cannot be read: byte {error.start + 1} is not UTF-8")]
