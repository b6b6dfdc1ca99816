"""The source that watches PEM files; a bad set of files is told, and the next change of any of them is waited for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from tproxy.core.config import Bundle, Files
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot
from tproxy.identity.files import load
from tproxy.identity.source import SourceError
from tproxy.identity.watch import Watch


def paths(files: Files | Bundle) -> list[str]:
    """The files that are watched."""
    return [files.credentials, files.ca] if isinstance(files, Bundle) else [files.cert, files.key, files.ca]


class FilesSource:
    """Snapshots of what stands in files."""

    def __init__(self, files: Files | Bundle, trust_domain: str) -> None:
        self.files, self.trust_domain = files, trust_domain
        self.name = "files " + ", ".join(paths(files))

    async def snapshots(self) -> AsyncIterator[Snapshot | SourceError]:
        """Now, and after each change."""
        watch = Watch(paths(self.files))
        while True:
            try:
                yield load(self.files, self.trust_domain, time.time())
            except ConfigError as error:
                yield SourceError("files", str(error))
            await watch.change()
