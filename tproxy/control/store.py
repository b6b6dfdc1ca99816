"""The authority's and the workloads' files: keys 0600, nothing overwritten, and a renewal is one rename.

A workload's folder looks like a volume of the kubelet's: ``cert.pem``, ``key.pem``, ``ca.pem`` lead through ``..data``
to a dated folder, so that replacing that one link replaces all three at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId


def create(folder: Path, trust_domain: str, kind: str) -> Pair:
    """A new authority in ``folder``; the root is returned. ConfigError if any of its files exists."""
    names = ("root.crt", "root.key", "intermediate.crt", "intermediate.key", "bundle.pem")
    for name in names:
        if (folder / name).exists():
            raise ConfigError(str(folder / name), "--dir", "exists; an authority is never overwritten")
    now = authority.utc_now()
    root = authority.new_root(trust_domain, kind, now)
    middle = authority.new_intermediate(root, trust_domain, kind, now)
    _folder(folder)
    contents = (
        root.certificate_pem(),
        root.key_pem(),
        middle.certificate_pem(),
        middle.key_pem(),
        root.certificate_pem(),
    )
    for name, data in zip(names, contents, strict=True):
        _write(folder / name, data, 0o600 if name.endswith(".key") else 0o644)
    return root


def signer(folder: Path) -> Pair:
    """The intermediate of an authority; ConfigError says which file is missing or damaged."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "intermediate.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "intermediate.key").read_bytes(), None)
    except OSError as error:
        why = f"{error.strerror}; make an authority with tproxy ca init --dir {folder}"
        raise ConfigError(str(error.filename), "--dir", why) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(str(folder), "--dir", "intermediate.crt or intermediate.key is damaged") from error
    return Pair(certificate, key)  # type: ignore[arg-type]


def issue(
    folder: Path, workload: SpiffeId, out: Path, life: timedelta, kind: str, renew: bool, owner: tuple[int, int] | None
) -> x509.Certificate:
    """Issue to ``out``; an existing identity there is replaced only by ``renew``, in one rename."""
    middle = signer(folder)
    domain = authority.trust_domain_of(middle.certificate)
    if workload.trust_domain != domain:
        why = f"this authority signs for {domain} only"
        raise ConfigError("command line", "--id", why, str(workload))
    if (out / "..data").is_symlink() != renew:
        why = "exists; --renew replaces it" if not renew else "holds no identity yet; leave out --renew"
        raise ConfigError(str(out), "--out", why)
    key = authority.new_key(kind)
    leaf = Pair(authority.issue(middle, workload, key.public_key(), life, authority.utc_now()), key)
    chain = leaf.certificate_pem() + middle.certificate_pem()
    bundle = (folder / "bundle.pem").read_bytes()
    _swap(out, {"cert.pem": chain, "key.pem": leaf.key_pem(), "ca.pem": bundle}, owner)
    return leaf.certificate


def _swap(out: Path, files: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
    """A new dated folder, then the one rename that makes it the current one, then the old one goes."""
    fresh = not out.exists()
    _folder(out)
    old = out / (out / "..data").readlink() if (out / "..data").is_symlink() else None
    dated = out / f"..{authority.utc_now():%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
    dated.mkdir(mode=0o755)
    for name, data in files.items():
        _write(dated / name, data, 0o600 if name == "key.pem" else 0o644)
    if owner is not None:
        for path in ([out] if fresh else []) + [dated, *(dated / name for name in files)]:
            os.chown(path, *owner)
    (out / "..data_tmp").unlink(missing_ok=True)
    (out / "..data_tmp").symlink_to(dated.name)
    (out / "..data_tmp").rename(out / "..data")
    for name in files:
        if not (out / name).is_symlink():
            (out / name).symlink_to(f"..data/{name}")
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be made: {error.strerror}") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file that appears whole, with its mode, or not at all; an existing one is an error."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        os.link(part, path)  # fails if the name is taken, unlike rename
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
