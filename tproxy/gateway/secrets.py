"""What Secrets and ConfigMaps hold of TLS: read from the objects once, and only what a rule refers to. Never logged.

vault = Vault(objects, Where("istio-system"))
vault.credential("webapp-credential", "shop")  # -> "istio-system/webapp-credential", or a sentence why not
"""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tproxy.core.certificates.pem import certificates
from tproxy.gateway.findings import Hints
from tproxy.gateway.objects import Object
from tproxy.identity.leaf import KeyPair, Leaf, leaf_of
from tproxy.identity.openssl import TlsError

_LARGEST = 1 << 20  # bytes of a file
SESSIONS, SHORTEST = "tproxy-session-key", 16  # a Secret beside the gateway's pod; bytes of its ``key``
CHAIN, KEY, CA, CRL = ("tls.crt", "cert"), ("tls.key", "key"), ("ca.crt", "cacert"), ("ca.crl", "crl")


@dataclass(frozen=True, slots=True)
class Where:
    """Whose Secrets an Istio Gateway may name: those of the gateway pod's namespace, as in Istio; its own, too."""

    namespace: str = "istio-system"
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Material:
    """PEM of one Secret or ConfigMap; what it does not have is empty."""

    name: str
    leaf: Leaf | None = None  # of its certificate, if that and its key fit together
    pair: KeyPair = field(default=KeyPair(b"", b""), repr=False)
    ca: bytes = field(default=b"", repr=False)
    crl: bytes = field(default=b"", repr=False)
    digest: bytes = b""


class Vault:
    """The Secrets and ConfigMaps of a configuration, and what rules have asked for."""

    def __init__(self, objects: Iterable[Object], where: Where, session_key: bytes = b"") -> None:
        self._where, self._session_key = where, session_key
        self._objects = {
            (one.kind, *one.key): one for one in objects if not one.group and one.kind in ("Secret", "ConfigMap")
        }
        self.material: dict[str, Material] = {}
        self._hints = Hints()

    @property
    def namespace(self) -> str:
        """The gateway pod's."""
        return self._where.namespace

    def session_key(self) -> tuple[bytes, str]:
        """Under which sessions are sealed, and why others do not know it: then it is this process's own."""
        name = f"{self.namespace}/{SESSIONS}"
        thing = self._objects.get(("Secret", self.namespace, SESSIONS))
        if thing is None:
            return self._session_key, f"{_title(name)} does not exist"
        try:
            found = _entry(thing, ("key",))
        except ValueError as error:
            return self._session_key, f"{_title(name)}: {error}"
        if len(found) < SHORTEST:
            return self._session_key, f"{_title(name)} has no key of {SHORTEST} bytes or more"
        return found, ""

    def credential(self, name: str, namespace: str) -> str | None:
        """The full name of the Secret that an Istio object in this namespace means; None if there is none."""
        name = name.removeprefix("kubernetes://")
        for where in (self._where.namespace, *((namespace,) if self._where.beside else ())):
            if ("Secret", where, name) in self._objects:
                return f"{where}/{name}"
        return None

    def missing(self, name: str, namespace: str) -> str:
        """Why there is no such credential, and what was meant perhaps: ``namespace`` is the Istio object's."""
        said = f"Secret {name} does not exist in namespace {self._where.namespace} (IST0101)"
        if ("Secret", namespace, name) in self._objects:
            return f"{said}; there is one in {namespace}, where --secrets-beside looks, too"
        return said + self._meant(name, self._where.namespace)

    def _meant(self, name: str, namespace: str, kind: str = "Secret") -> str:
        there = (one for what, where, one in self._objects if (what, where) == (kind, namespace))
        return self._hints.near(name, there, 0.6)

    def fault(self, name: str) -> str:
        """Why a Secret (``namespace/name``) is no certificate with its key; empty if it is one. It is kept, if so."""
        found = self.get(name)
        if isinstance(found, str):
            return found
        return "" if found.leaf else f"{_title(name)} has no tls.crt and tls.key"

    def ca_fault(self, name: str) -> str:
        """Why a Secret (``namespace/name``) or ConfigMap (``configmap namespace/name``) has no CA certificate."""
        found = self.get(name)
        if isinstance(found, str):
            return found
        return "" if found.ca else f"{_title(name)} has no ca.crt"

    def get(self, name: str) -> Material | str:
        """What is in it, kept for the contexts; or a sentence why it cannot be used."""
        if (found := self.material.get(name)) is not None:
            return found
        kind, _, rest = name.rpartition(" ")
        namespace, _, plain = rest.partition("/")
        thing = self._objects.get(("ConfigMap" if kind else "Secret", namespace, plain))
        if thing is None:
            return f"{_title(name)} does not exist{self._meant(plain, namespace, 'ConfigMap' if kind else 'Secret')}"
        try:
            chain, key, ca, crl = (_entry(thing, names) for names in (CHAIN, KEY, CA, CRL))
            return self.keep(name, chain, key, ca, crl)
        except ValueError as error:
            return f"{_title(name)}: {error}"

    def files(self, chain: str, key: str, ca: str = "", crl: str = "") -> Material | str:
        """The same out of files of this machine, as Istio's serverCertificate, privateKey and caCertificates are."""
        try:
            texts = [_file(name) if name else b"" for name in (chain, key, ca, crl)]
            return self.keep(" ".join(("files", chain, key, ca, crl)), *texts)
        except OSError as error:
            return f"{error.filename or chain or ca}: {error.strerror}"
        except ValueError as error:
            return f"{chain or ca}: {error}"

    def keep(self, name: str, chain: bytes, key: bytes, ca: bytes = b"", crl: bytes = b"") -> Material:
        """ValueError says what of it cannot be used, and repeats none of it."""
        leaf = None
        if chain or key:
            leaf = _leaf(chain, key)
        digest = hashlib.sha256(b"\0".join((chain, key, ca, crl))).digest()
        if ca and not certificates(ca):
            raise ValueError("ca.crt is not PEM")
        pair = KeyPair(b"".join(certificates(chain)), key)  # a key may stand beside them, and chains are shown
        made = self.material[name] = Material(name, leaf, pair, ca, crl, digest)
        return made


def _file(name: str) -> bytes:
    """Of a plain file of reasonable size: whoever may write a Gateway may name any."""
    path = Path(name)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file", name)
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise OSError(errno.EFBIG, f"is larger than {_LARGEST >> 20} MiB", name)
    return text


def _title(name: str) -> str:
    return f"ConfigMap {name.removeprefix('configmap ')}" if name.startswith("configmap ") else f"Secret {name}"


def _leaf(chain: bytes, key: bytes) -> Leaf:
    if b"PRIVATE KEY" in chain and b"-----BEGIN CERTIFICATE" in key:
        raise ValueError("tls.crt holds a key, and tls.key a certificate")
    for text, what in ((chain, CHAIN[0]), (key, KEY[0])):
        if b"-----BEGIN " not in text:
            raise ValueError(f"{what} is not PEM")
    try:
        return leaf_of(KeyPair(chain, key))
    except TlsError as error:
        raise ValueError(error.why) from None


def _entry(thing: Object, names: Iterable[str]) -> bytes:
    for field_name in ("data", "stringData", "binaryData"):
        data = thing.body.get(field_name)
        if not isinstance(data, Mapping):
            continue
        for name in names:
            if (value := data.get(name)) is not None:
                if field_name == "stringData" or (thing.kind, field_name) == ("ConfigMap", "data"):
                    return str(value).encode()
                try:
                    return base64.b64decode("".join(str(value).split()), validate=True)
                except ValueError:
                    raise ValueError(f"{name} is not base64") from None
    return b""
