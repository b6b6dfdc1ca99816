"""What signs at this moment: an intermediate, the roots that its certificates come with, and the version of both.

With ``root.key`` in the generation's folder a fresh intermediate is made and kept in memory only; without it the one in
the folder is used, and the root stays offline.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.control.state import Generation, State
from tproxy.core.fields import ConfigError

MEMORY_LIFE = timedelta(days=7)  # of an intermediate that dies with the process; made anew at half of it
_ROOT = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class Signer:
    """Immutable; a rotation step or time makes another one."""

    pair: Pair
    trust_domain: str
    roots: str = field(repr=False)  # PEM of all roots that are trusted now
    generation: int
    version: int
    in_memory: bool

    def chain(self, leaf: x509.Certificate) -> list[str]:
        """As ``IstioCertificateResponse.cert_chain``: leaf, intermediate, then all roots in one entry."""
        made = (leaf, self.pair.certificate)
        return [*(one.public_bytes(serialization.Encoding.PEM).decode() for one in made), self.roots]

    def ends(self) -> datetime:
        """When it can sign no more."""
        return self.pair.certificate.not_valid_after_utc


def home(folder: Path, number: int) -> Path:
    """Where a generation's files are: the first one's in the authority's folder itself."""
    return folder if number == 1 else folder / f"generation-{number}"


def signing(generations: list[Generation]) -> Generation:
    """The generation that signs; there is always exactly one."""
    return next(one for one in generations if one.state == "signing")


def roots(generations: list[Generation]) -> str:
    """Every trusted root once, the oldest generation first."""
    trusted = "".join(one.bundle for one in generations if one.state != "dropped")
    return "".join(f"{block}\n" for block in dict.fromkeys(_ROOT.findall(trusted)))


def load(folder: Path, state: State, held: Signer | None = None) -> Signer:
    """The present signer; ``held`` itself if nothing changed. ConfigError names the file that is unusable."""
    now = authority.utc_now()
    if held is not None and held.version == state.version() and not _is_stale(held, now):
        return held
    version, generations = state.generations()
    number, trusted = signing(generations).number, roots(generations)
    if held is not None and held.in_memory and held.generation == number and not _is_stale(held, now):
        return Signer(held.pair, held.trust_domain, trusted, number, version, held.in_memory)
    place = home(folder, number)
    root = _root(place)
    if root is None:
        pair = of_files(place)
    else:
        domain = _domain(root, place / "root.crt")
        pair = authority.new_intermediate(root, domain, "ecdsa", now, MEMORY_LIFE)
    return Signer(pair, _domain(pair, place / "intermediate.crt"), trusted, number, version, root is not None)


def _is_stale(held: Signer, now: datetime) -> bool:
    left = held.ends() - now
    return left < MEMORY_LIFE / 2 if held.in_memory else left <= timedelta(0)


def of_files(place: Path) -> Pair:
    """The intermediate in a folder; ConfigError says which file is missing or damaged, or that it has expired."""
    pair = _pair(place, "intermediate")
    if pair.certificate.not_valid_after_utc <= authority.utc_now():
        why = f"expired at {pair.certificate.not_valid_after_utc}"
        raise ConfigError(str(place / "intermediate.crt"), "--dir", why)
    return pair


def root_of(place: Path) -> Pair:
    """The root in a folder, whose key must be there; ConfigError otherwise."""
    return _pair(place, "root")


def _root(place: Path) -> Pair | None:
    return _pair(place, "root") if (place / "root.key").exists() else None


def _pair(place: Path, name: str) -> Pair:
    crt, key = f"{name}.crt", f"{name}.key"
    try:
        certificate = x509.load_pem_x509_certificate(read(place / crt, place))
        private = serialization.load_pem_private_key(read(place / key, place), None)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(place), "--dir", f"{crt} or {key} is damaged") from None
    if private.public_key() != certificate.public_key():
        raise ConfigError(str(place / key), "--dir", f"is not the key of {crt}")
    return Pair(certificate, private)  # type: ignore[arg-type]


def _domain(pair: Pair, path: Path) -> str:
    try:
        return authority.trust_domain_of(pair.certificate)
    except ValueError as error:
        raise ConfigError(str(path), "--dir", str(error)) from error


def read(path: Path, folder: Path) -> bytes:
    """A file of an authority; ConfigError says how to make one."""
    try:
        return path.read_bytes()
    except OSError as error:
        why = f"{error.strerror}; make an authority with tproxy ca init --dir {folder}"
        raise ConfigError(str(path), "--dir", why) from error
