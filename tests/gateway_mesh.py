"""An identity in a mesh for a gateway under test, and for those who call it."""

from __future__ import annotations

from pathlib import Path

import yaml

from tproxy.control import authority
from tproxy.core.identity import SpiffeId, Svid


def svid(root: authority.Pair, who: SpiffeId) -> Svid:
    """Signed by the root itself."""
    key, now = authority.new_key("ecdsa"), authority.utc_now()
    leaf = authority.Pair(authority.issue(root, who, key.public_key(), authority.INTERMEDIATE_LIFE, now), key)
    return Svid(who, leaf.certificate_pem(), leaf.key_pem(), leaf.certificate.serial_number, 0, 0)


def mesh_file(folder: Path, root: authority.Pair, who: SpiffeId) -> Path:
    """For ``--mesh``; the files that it names are in the same folder."""
    own = svid(root, who)
    for name, text in (("cert", own.chain_pem), ("key", own.key_pem), ("ca", root.certificate_pem())):
        (folder / f"{name}.pem").write_bytes(text)
        (folder / f"{name}.pem").chmod(0o600)
    identity = {name: str(folder / f"{name}.pem") for name in ("cert", "key", "ca")}
    path = folder / "mesh.yaml"
    path.write_text(yaml.safe_dump({"trustDomain": who.trust_domain, "identity": identity}))
    return path
