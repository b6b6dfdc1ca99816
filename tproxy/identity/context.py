"""An SVID as OpenSSL wants it: one TLS 1.3 context for one role, trusting one bundle. The key never touches a disk."""

from __future__ import annotations

import os
import ssl

from tproxy.core.identity import Svid


def context(protocol: int, svid: Svid, bundle: bytes) -> ssl.SSLContext:
    """``ssl.PROTOCOL_TLS_SERVER`` or ``..._CLIENT``. ssl.SSLError if key, chain or bundle do not fit.

    Host names are not checked, because a SPIFFE id is, before the first byte is forwarded.
    """
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=bundle.decode("ascii", "replace"))
    _load_pair(made, svid.key_pem + b"\n" + svid.chain_pem)
    return made


def _load_pair(made: ssl.SSLContext, pem: bytes) -> None:
    """Python's ssl reads keys from paths only: an anonymous file in memory has one (memfd_create(2))."""
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(pem)
        made.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")
    finally:
        os.close(fd)
