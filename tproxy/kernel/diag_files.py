"""Whether what the section ``identity`` names can be read: part of ``tproxy check``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tproxy.core.config import Config
from tproxy.core.settings import Bundle, Files, IstioCa, WorkloadApi
from tproxy.kernel.finding import Finding, Level

CERTIFICATE, KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"  # in the first line of what a PEM file must hold


def certificates(config: Config) -> Iterator[Finding]:
    """Whether the files of the identity can be read, by us and by the sidecar's user; an agent's socket, too."""
    match config.identity:
        case None:
            advice = "set identity.cert, identity.key and identity.ca, or another source"
            yield Finding("certificates", Level.WARN, "the configuration names none", advice)
        case Files(cert, key, ca):
            yield _file("identity.cert", cert, CERTIFICATE, config)
            yield _file("identity.key", key, KEY, config)
            yield _file("identity.ca", ca, CERTIFICATE, config)
        case Bundle(credentials, ca):
            yield _file("identity.credentials", credentials, KEY, config)
            yield _file("identity.ca", ca, CERTIFICATE, config)
        case IstioCa() as source:
            yield _file("identity.istioCa.token", source.token, b"", config)
            yield _file("identity.istioCa.roots", source.roots, CERTIFICATE, config)
        case WorkloadApi(socket=address):
            yield _agent(address)


def _agent(address: str) -> Finding:
    """A SPIFFE Workload API on a unix socket; one on TCP is not tried."""
    path, name = address.removeprefix("unix:").removeprefix("//"), "identity.workloadApi"
    if not address:
        return Finding(name, Level.OK, "the sidecar's environment says which (SPIFFE_ENDPOINT_SOCKET)")
    if address.startswith("tcp:") or Path(path).is_socket():
        return Finding(name, Level.OK, address)
    return Finding(name, Level.BAD, f"{path}: no socket is there", "mount the agent's socket, or correct the path")


def _file(name: str, path: str, kind: bytes, config: Config) -> Finding:
    try:
        with Path(path).open("rb") as file:
            content, status = file.read(1 << 20), os.fstat(file.fileno())
    except OSError as error:
        return Finding(name, Level.BAD, f"{path}: {error.strerror}", "mount the file, or correct the path")
    if kind not in content:
        word = kind.decode().strip("-").lower()
        return Finding(name, Level.BAD, f"{path}: holds no {word} in PEM", "give the path of a PEM file")
    if not _may_read(status, config):
        advice = f"chown it to {config.uid}:{config.gid}, or set fsGroup: {config.gid}"
        return Finding(name, Level.WARN, f"{path}: uid {config.uid} may not read it", advice)
    if kind == KEY and status.st_mode & stat.S_IROTH:
        return Finding(name, Level.WARN, f"{path}: everybody may read the key", f"chmod 0640 {path}")
    return Finding(name, Level.OK, path)


def _may_read(status: os.stat_result, config: Config) -> bool:
    """By the mode bits alone, for the user that the sidecar becomes."""
    if status.st_uid == config.uid:
        return bool(status.st_mode & stat.S_IRUSR)
    if status.st_gid == config.gid:
        return bool(status.st_mode & stat.S_IRGRP)
    return bool(status.st_mode & stat.S_IROTH)
