"""From the configuration's section ``identity`` to its source; what a source needs is imported only if it is used."""

from __future__ import annotations

import time
from typing import assert_never

from tproxy.core.settings import Bundle, Files, Identity, IstioCa, Trust, WorkloadApi
from tproxy.identity.files import load
from tproxy.identity.files_source import FilesSource
from tproxy.identity.source import Source


def open_source(identity: Identity, trust_domain: str, trust: Trust) -> Source:
    """The source that was chosen. Nothing is read or asked yet."""
    match identity:
        case Files() | Bundle():
            return FilesSource(identity, trust_domain)
        case IstioCa():
            from tproxy.identity.istio_ca import IstioCaSource  # gRPC costs memory

            return IstioCaSource(identity, trust_domain)
        case WorkloadApi():
            from tproxy.identity.workload_api import WorkloadApiSource  # gRPC costs memory

            return WorkloadApiSource(identity, trust_domain, [other.trust_domain for other in trust.federated])
        case never:
            assert_never(never)


def preflight(identity: Identity, trust_domain: str, trust: Trust) -> None:
    """Import what the source needs while Python may still be read, and refuse files that are no good at once."""
    open_source(identity, trust_domain, trust)
    if isinstance(identity, Files | Bundle):
        load(identity, trust_domain, time.time())
