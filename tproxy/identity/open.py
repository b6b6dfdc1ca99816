"""The source that a configuration names."""

from __future__ import annotations

import time

from tproxy.core.config import Config, Files
from tproxy.identity.source import Source


def open_source(config: Config) -> Source:
    """Modules that speak gRPC are imported by those who use it only."""
    from tproxy.identity.files_source import FilesSource

    assert isinstance(config.identity, Files)
    return FilesSource(config.identity, config.trust_domain)


def preflight(config: Config) -> None:
    """Import what the source needs while Python may still be read, and refuse files that are no good at once."""
    from tproxy.identity.files import load

    assert isinstance(config.identity, Files)
    load(config.identity, config.trust_domain, time.time())
