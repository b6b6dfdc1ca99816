"""SVIDs from PEM files, as cert-manager, Vault agent, kubelet or ``tproxy ca`` put them there.

What is loaded is proven: a handshake with ourselves, in memory, shows that certificate, key, chain and bundle fit.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from tproxy.core.config import Files
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot, SpiffeId, Svid, svid_id
from tproxy.core.reason import Deny
from tproxy.core.x509 import LeafFacts, Malformed, leaf_facts
from tproxy.identity.openssl import Tls, TlsError, role

LIMIT = 1024 * 1024  # bytes of a file; a bundle of a thousand roots fits
TRIES = 5  # a rotation may happen between reading the certificate and the key
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


def load(files: Files, trust_domain: str, now: float) -> Snapshot:
    """Read, check and prove. ConfigError names the file and the field; nothing is cached.

    Certificate and key of two generations, met in the middle of a rotation, are read again before they are refused.
    """
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return _load(files, trust_domain, now)
        except _RotatingError:
            if last:
                raise
    raise AssertionError  # the loop returns or raises


class _RotatingError(ConfigError):
    """What a rotation under way looks like: a key of another certificate, or a file that has just gone."""


def _load(files: Files, trust_domain: str, now: float) -> Snapshot:
    chain, leaf = _chain(files)
    key = _key(files)
    bundle = _bundle(files)
    svid = Svid(_id(files, leaf, trust_domain, now), chain, key, leaf.serial, leaf.not_before, leaf.not_after)
    _prove(files, svid, bundle)
    return Snapshot(svid, {trust_domain: bundle})


def _read(path: str, field: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not stop us
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(path, field, "is not a regular file")
            data = file.read(LIMIT + 1)
    except OSError as error:
        kind = _RotatingError if isinstance(error, FileNotFoundError) else ConfigError
        raise kind(path, field, f"cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise ConfigError(path, field, f"is larger than {LIMIT} bytes")
    if not data.strip():
        raise ConfigError(path, field, "is empty")
    return data


def _chain(files: Files) -> tuple[bytes, LeafFacts]:
    blocks = _CERTIFICATE.findall(_read(files.cert, "identity.cert"))
    if not blocks:
        raise ConfigError(files.cert, "identity.cert", "holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
    try:
        leaf = leaf_facts(ssl.PEM_cert_to_DER_cert(blocks[0].decode("ascii")))
    except ValueError as error:
        raise ConfigError(files.cert, "identity.cert", f"the first PEM block is damaged: {error}") from error
    if isinstance(leaf, Malformed):
        raise ConfigError(files.cert, "identity.cert", f"the first certificate cannot be read: {leaf.why}")
    return b"\n".join(blocks) + b"\n", leaf


def _key(files: Files) -> bytes:
    data = _read(files.key, "identity.key")
    mode = stat.S_IMODE(Path(files.key).stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise ConfigError(files.key, "identity.key", f"mode {mode:04o} lets others at the key: chmod 600 (or 640)")
    found = _KEY.search(data)
    if not found:
        raise ConfigError(files.key, "identity.key", "holds no PEM private key (-----BEGIN PRIVATE KEY-----)")
    if b"ENCRYPTED" in found.group(0):
        raise ConfigError(files.key, "identity.key", "is encrypted; a sidecar has nobody to ask for the password")
    return found.group(0) + b"\n"


def _bundle(files: Files) -> bytes:
    blocks = _CERTIFICATE.findall(_read(files.ca, "identity.ca"))
    if not blocks:
        raise ConfigError(files.ca, "identity.ca", "holds no PEM certificate, so it trusts nobody")
    if not any(_is_ca(block) for block in blocks):
        raise ConfigError(files.ca, "identity.ca", "holds no certificate of a CA (CA:true), so it trusts nobody")
    return b"\n".join(blocks) + b"\n"


def _is_ca(block: bytes) -> bool:
    """Damaged ones count: OpenSSL will name them."""
    try:
        found = leaf_facts(ssl.PEM_cert_to_DER_cert(block.decode("ascii")))
    except ValueError:
        return True
    return not isinstance(found, LeafFacts) or found.is_ca


def _id(files: Files, leaf: LeafFacts, trust_domain: str, now: float) -> SpiffeId:
    found = svid_id(leaf)
    if isinstance(found, Deny):
        raise ConfigError(files.cert, "identity.cert", f"is not an X.509-SVID: {found.why}; {found.advice}")
    if found.trust_domain != trust_domain:
        why = f"is {found}, of another trust domain than {trust_domain} (trustDomain)"
        raise ConfigError(files.cert, "identity.cert", why)
    if now >= leaf.not_after:
        raise ConfigError(files.cert, "identity.cert", f"expired {now - leaf.not_after:.0f} s ago; renew it")
    if now < leaf.not_before:
        why = f"is valid only in {leaf.not_before - now:.0f} s; compare clocks"
        raise ConfigError(files.cert, "identity.cert", why)
    return found


def _prove(files: Files, svid: Svid, bundle: bytes) -> None:
    """A TLS 1.3 handshake with ourselves, both sides verifying, in memory."""
    try:
        ends = tuple(Tls(role(server, svid, bundle, "own")) for server in (False, True))
    except TlsError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"):
            raise _RotatingError(files.key, "identity.key", f"is not the key of {files.cert}") from error
        raise ConfigError(files.cert, "identity", f"OpenSSL refuses it: {error.why}") from error
    try:
        for _ in range(3):
            for end, other in (ends, ends[::-1]):
                end.shake()
                other.feed(end.take())
    except TlsError as error:
        if error.verify_code:
            why = f"does not verify against our own bundle {files.ca}: {error.why}"
            raise ConfigError(files.cert, "identity.cert", why) from error
        raise ConfigError(files.cert, "identity.cert", f"fails a handshake with itself: {error.why}") from error


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
