"""The authority's and the workloads' files: keys 0600, nothing overwritten, and a renewal is one rename.

A workload's folder looks like a volume of the kubelet's: ``cert.pem``, ``key.pem``, ``ca.pem`` lead through ``..data``
to a dated folder, so that replacing that one link replaces all three at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.control.signer import home, of_files, read, root_of, roots, signing
from tproxy.control.state import NAME, Entry, Outcome, State
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
    written: list[Path] = []
    try:
        for name, data in zip(names, contents, strict=True):
            _write(folder / name, data, 0o600 if name.endswith(".key") else 0o644)
            written.append(folder / name)
    except ConfigError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return root


def signer(folder: Path) -> Pair:
    """The intermediate of the generation that signs; ConfigError says which file is missing, damaged or expired."""
    if not (folder / NAME).exists():
        return of_files(folder)
    with closing(State.open(folder)) as state:
        return of_files(home(folder, signing(state.generations()[1]).number))


def issue(
    folder: Path, workload: SpiffeId, out: Path, life: timedelta, kind: str, renew: bool, owner: tuple[int, int] | None
) -> x509.Certificate:
    """Issue to ``out``; an existing identity there is replaced only by ``renew``, in one rename."""
    middle = signer(folder)
    domain = authority.trust_domain_of(middle.certificate)
    if workload.trust_domain != domain:
        own = str(replace(workload, trust_domain=domain))
        raise ConfigError("command line", "--id", f"this authority signs for {domain} only", str(workload), [own])
    owner = owner or _owner(out)
    _check_out(out, workload, renew)
    key = authority.new_key(kind)
    leaf = Pair(authority.issue(middle, workload, key.public_key(), life, authority.utc_now()), key)
    bundle = _log(folder, middle, leaf.certificate, workload, out)
    chain = leaf.certificate_pem() + middle.certificate_pem()
    _swap(out, {"cert.pem": chain, "key.pem": leaf.key_pem(), "ca.pem": bundle}, owner)
    return leaf.certificate


def _log(folder: Path, middle: Pair, leaf: x509.Certificate, workload: SpiffeId, out: Path) -> bytes:
    """Write the certificate into the issuance log; the roots to go with it."""
    with closing(State.open(folder)) as state:
        version, generations = state.generations()
        number = signing(generations).number
        entry = Entry(
            serial=f"{leaf.serial_number:x}",
            id=str(workload),
            holder=f"file:{out.absolute()}",
            caller="",
            pod="",
            how="command line",
            not_before=int(leaf.not_valid_before_utc.timestamp()),
            not_after=int(leaf.not_valid_after_utc.timestamp()),
            generation=number,
            version=version,
        )
        same = of_files(home(folder, number)).certificate == middle.certificate
        if not same or state.record([entry], int(authority.utc_now().timestamp())) != [Outcome.DONE]:
            raise ConfigError(str(folder), "--dir", "a rotation step came just now; try again")
        return roots(generations).encode()


def renew_intermediate(folder: Path, kind: str) -> Pair:
    """Another intermediate for the generation that signs; its root's key must be in the folder for this moment.

    Certificates of the one before stay good. A running server takes up the new one, because the version changes.
    """
    with closing(State.open(folder)) as state:
        place = home(folder, signing(state.generations()[1]).number)
        root = root_of(place)
        made = authority.new_intermediate(root, authority.trust_domain_of(root.certificate), kind, authority.utc_now())
        with state.writing() as db:  # readers of the two files ask the state first
            for name, data, mode in (("key", made.key_pem(), 0o600), ("crt", made.certificate_pem(), 0o644)):
                part = place / f".intermediate.{name}.{secrets.token_hex(4)}"
                _write(part, data, mode)
                part.rename(place / f"intermediate.{name}")
            db.execute("UPDATE meta SET version = version + 1")
    return made


def _check_out(out: Path, workload: SpiffeId, renew: bool) -> None:
    """Refuse, before anything is written, what would replace somebody else's files."""
    if (out / "..data").is_symlink() != renew:
        why = "exists; --renew replaces it" if not renew else "holds no identity yet; leave out --renew"
        raise ConfigError(str(out), "--out", why)
    for name in ("cert.pem", "key.pem", "ca.pem"):
        if (out / name).exists() and not (out / name).is_symlink():
            raise ConfigError(str(out / name), "--out", "exists and was not made by tproxy ca")
    if renew:
        held = x509.load_pem_x509_certificate(read(out / "cert.pem", out))
        names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if names.get_values_for_type(x509.UniformResourceIdentifier) != [str(workload)]:
            raise ConfigError(str(out), "--out", f"holds another identity than {workload}; choose another folder")


def _owner(out: Path) -> tuple[int, int] | None:
    """Who owns the key that is to be replaced: its reader must be able to read the next one."""
    try:
        found = (out / "key.pem").stat()
    except OSError:
        return None
    return found.st_uid, found.st_gid


def _swap(out: Path, files: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
    """A new dated folder, then the one rename that makes it the current one, then the old one goes."""
    fresh = not out.exists()
    _folder(out)
    old = out / (out / "..data").readlink() if (out / "..data").is_symlink() else None
    dated = out / f"..{authority.utc_now():%Y_%m_%d_%H_%M_%S}.{secrets.token_hex(4)}"
    dated.mkdir(mode=0o700)
    for name, data in files.items():
        _write(dated / name, data, 0o600 if name == "key.pem" else 0o644)
    if owner is not None:
        _give([*([out] if fresh else []), dated, *(dated / name for name in files)], owner)
    (out / "..data_tmp").unlink(missing_ok=True)
    (out / "..data_tmp").symlink_to(dated.name)
    (out / "..data_tmp").rename(out / "..data")
    for name in files:
        if not (out / name).is_symlink():
            (out / name).symlink_to(f"..data/{name}")
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _give(paths: list[Path], owner: tuple[int, int]) -> None:
    try:
        for path in paths:
            if path.stat()[4:6] != owner:
                os.chown(path, *owner)
    except OSError as error:
        why = f"{paths[0]} cannot be given to {owner[0]}:{owner[1]}: {error.strerror}"
        raise ConfigError("command line", "--owner", why) from error


def _folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
