"""What the section ``trust`` adds to a source's snapshots: bundles of other trust domains, and CRLs, from files."""

from __future__ import annotations

from dataclasses import replace

from tproxy.core.certificates import pem
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot
from tproxy.core.settings import Trust
from tproxy.identity import crl
from tproxy.identity.files import read
from tproxy.identity.proof import UnusableError, checked_bundle


def paths(trust: Trust) -> list[str]:
    """The files that it names."""
    return [path for path in (trust.crl, *(other.bundle for other in trust.federated)) if path]


def trusted(snapshot: Snapshot, trust: Trust) -> Snapshot:
    """The snapshot with them; ConfigError names the file. Only listed trust domains stay."""
    own = snapshot.svid.id.trust_domain
    bundles = {own: snapshot.bundles[own]}
    for index, other in enumerate(trust.federated):
        if other.bundle:
            bundles[other.trust_domain] = _bundle(other.bundle, f"trust.federated[{index}].bundle")
        elif other.trust_domain in snapshot.bundles:
            bundles[other.trust_domain] = snapshot.bundles[other.trust_domain]
    return replace(snapshot, bundles=bundles, crls=(*snapshot.crls, *_crls(trust.crl)))


def _bundle(path: str, field: str) -> bytes:
    try:
        return checked_bundle(read(path, field))
    except UnusableError as error:
        raise ConfigError(path, field, error.why) from error


def _crls(path: str) -> list[bytes]:
    if not path:
        return []
    found = pem.crls(read(path, "trust.crl"))
    if not found:
        raise ConfigError(path, "trust.crl", "holds no PEM CRL (-----BEGIN X509 CRL-----)")
    try:
        crl.parse(tuple(found))
    except crl.CrlError as error:
        raise ConfigError(path, "trust.crl", str(error)) from error
    return found
