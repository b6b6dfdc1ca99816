"""SVIDs from PEM files, as cert-manager, Vault agent, kubelet or ``tproxy ca`` put them there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tproxy.core.certificates import pem
from tproxy.core.config import Bundle, Files
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot
from tproxy.identity.proof import Part, UnusableError, checked_bundle, proven

LIMIT = 1024 * 1024  # bytes of a file; a bundle of a thousand roots fits
TRIES = 5  # a rotation may happen between reading the certificate and the key


def load(files: Files | Bundle, trust_domain: str, now: float) -> Snapshot:
    """Read, check and prove. ConfigError names the file and the field; nothing is cached.

    Certificate and key of two generations, met in the middle of a rotation, are read again before they are refused.
    """
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return _load(files, trust_domain, now)
        except RotatingError:
            if last:
                raise
    raise AssertionError  # the loop returns or raises


class RotatingError(ConfigError):
    """What a rotation under way looks like: a key of another certificate, or a file that has just gone."""


def _load(files: Files | Bundle, trust_domain: str, now: float) -> Snapshot:
    chain, key, fields = _pair(files)
    try:
        bundles = {trust_domain: checked_bundle(read(files.ca, "identity.ca"))}
    except UnusableError as error:
        raise ConfigError(files.ca, "identity.ca", error.why) from error
    try:
        return proven(chain, key, bundles, trust_domain, now)
    except UnusableError as error:
        if error.part is Part.PAIR:
            raise RotatingError(*fields[Part.PAIR], f"is not the key of {fields[Part.CHAIN][0]}") from error
        raise ConfigError(*fields[error.part], error.why) from error


def _pair(files: Files | Bundle) -> tuple[bytes, bytes, dict[Part, tuple[str, str]]]:
    """Chain and key, and where each part stands: file and field."""
    if isinstance(files, Files):
        cert, key = (files.cert, "identity.cert"), (files.key, "identity.key")
    else:
        cert = key = (files.credentials, "identity.credentials")
    where = {Part.CHAIN: cert, Part.KEY: key, Part.PAIR: key, Part.BUNDLE: (files.ca, "identity.ca")}
    return read(*cert), _key(*key), where


def read(path: str, field: str) -> bytes:
    """A whole regular file that is neither empty nor huge; ConfigError names it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not stop us
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(path, field, "is not a regular file")
            data = file.read(LIMIT + 1)
    except OSError as error:
        kind = RotatingError if isinstance(error, FileNotFoundError) else ConfigError
        raise kind(path, field, f"cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise ConfigError(path, field, f"is larger than {LIMIT} bytes")
    if not data.strip():
        raise RotatingError(path, field, "is empty")
    return data


def _key(path: str, field: str) -> bytes:
    data = read(path, field)
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise ConfigError(path, field, f"mode {mode:04o} lets others at the key: chmod 600 (or 640)")
    key = pem.private_key(data)
    if key is None:
        raise ConfigError(path, field, "holds no PEM private key (-----BEGIN PRIVATE KEY-----)")
    if b"ENCRYPTED" in key:
        raise ConfigError(path, field, "is encrypted; a sidecar has nobody to ask for the password")
    return key
