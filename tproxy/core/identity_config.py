"""The sections ``identity``, ``trust`` and ``directory``: which source, who else is believed, who tells of others."""

from __future__ import annotations

import re
from collections.abc import Callable

from tproxy.core.fields import Fields
from tproxy.core.identity import SpiffeId, parse_trust_domain
from tproxy.core.settings import (
    Bundle,
    Directory,
    Federated,
    Files,
    Identity,
    IstioCa,
    KeyType,
    Mixed,
    Trust,
    WorkloadApi,
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = ("istioCa", "workloadApi")
TOKEN = "/var/run/secrets/tokens/istio-token"  # where Istio's injector mounts them, and so does ours
ROOTS = "/var/run/secrets/istio/root-cert.pem"


def parse_seconds(value: object) -> int:
    """``90s``, ``15m``, ``24h``, ``7d``: whole seconds, at least one."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", value) if isinstance(value, str) else None
    if not found or not int(found[1]):
        raise ValueError("expected a time such as 90s, 15m, 24h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def parse_identity(fields: Fields) -> Identity:
    """One source: files (cert, key, ca), a bundle (credentials, ca), istioCa or workloadApi."""
    given = [kind for kind in _KINDS if fields.raw(kind) is not None]
    if given:
        made = _istio(fields.inner("istioCa")) if given[0] == "istioCa" else _workload(fields.inner("workloadApi"))
        for key in fields.data:
            if key not in given[:1] and key in (*_KINDS, "cert", "key", "ca", "credentials"):
                raise fields.error(str(key), f"stands beside {given[0]}: choose one source")
        fields.finish()
        return made
    files = _bundle(fields) if fields.raw("credentials") is not None else _files(fields)
    fields.known.update(_KINDS)
    fields.finish()
    return files


def _files(fields: Fields) -> Files:
    files = Files(cert=fields.text("cert"), key=fields.text("key"), ca=fields.text("ca"))
    for name in ("cert", "key", "ca"):
        if not getattr(files, name):
            raise fields.error(name, "is missing: the path of a PEM file")
    return files


def _bundle(fields: Fields) -> Bundle:
    for name in ("cert", "key"):
        if fields.raw(name) is not None:
            raise fields.error(name, "stands beside credentials, which holds key and chain in one file")
    bundle = Bundle(credentials=fields.text("credentials"), ca=fields.text("ca"))
    if not bundle.ca:
        raise fields.error("ca", "is missing: the path of a PEM file")
    return bundle


def _istio(fields: Fields) -> IstioCa:
    base = IstioCa("", TOKEN, ROOTS)
    found = IstioCa(
        address=fields.parsed("address", _address, None),
        token=fields.text("token", base.token),
        roots=fields.text("roots", base.roots),
        server_name=fields.text("serverName"),
        cluster=fields.parsed("clusterId", _header, base.cluster),
        ttl=fields.parsed("ttl", parse_seconds, "24h"),
        key_type=KeyType(fields.choice("keyType", base.key_type, list(KeyType))),
    )
    fields.finish()
    return found


def parse_directory(fields: Fields) -> Directory:
    """``address: host:port``, ``serverName``, ``timeout`` in seconds, ``mixed: mtls`` or ``plain``."""
    found = Directory(
        address=fields.parsed("address", _address, None),
        server_name=fields.text("serverName"),
        timeout=fields.number("timeout", Directory("").timeout, 0, 3600),
        mixed=Mixed(fields.choice("mixed", Mixed.MTLS, list(Mixed))),
    )
    fields.finish()
    return found


def _header(value: object) -> str:
    """What HTTP/2 carries in a header."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value.strip():
        raise ValueError("expected printable ASCII")
    return value.strip()


def _address(value: object) -> str:
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", value) if isinstance(value, str) else None
    if not found or not 0 < int(found[2]) < 65536:
        raise ValueError("expected host:port, such as istiod.istio-system.svc:15012")
    return found[0]


def _workload(fields: Fields) -> WorkloadApi:
    found = WorkloadApi(
        socket=fields.parsed("socket", parse_socket, None) if fields.raw("socket") is not None else "",
        id=str(fields.parsed("id", _optional_id, "")),
        hint=fields.text("hint"),
    )
    fields.finish()
    return found


def parse_socket(value: object) -> str:
    """SPIFFE Workload Endpoint, section 4: unix with an absolute path, or tcp with an address and a port."""
    text = value if isinstance(value, str) else ""
    if re.fullmatch(r"unix:(//)?/[^?#\s]+", text) or re.fullmatch(r"tcp://(\[[0-9a-f:]+\]|[0-9.]+):\d{1,5}", text):
        return text
    raise ValueError("expected unix:///path/of/the/socket or tcp://address:port, as in SPIFFE_ENDPOINT_SOCKET")


def _optional_id(value: object) -> SpiffeId | str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return SpiffeId.parse(value) if value else ""


def parse_trust(fields: Fields, own: str) -> Trust:
    """Aliases of our trust domain, other trust domains, CRLs; a name may stand once only."""
    domain = _name_of(own)
    aliases = fields.items("aliases", domain)
    federated = tuple(_federated(entry, domain) for entry in fields.each("federated"))
    seen: set[str] = set()
    for name in (*aliases, *(other.trust_domain for other in federated)):
        if name in seen:
            raise fields.error("federated", f"{name} stands twice among aliases and federated trust domains")
        seen.add(name)
    trust = Trust(aliases, federated, fields.text("crl"))
    fields.finish()
    return trust


def _name_of(own: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("expected text")
        if parse_trust_domain(value) == own:
            raise ValueError("is our own trust domain (trustDomain)")
        return value

    return parse


def _federated(fields: Fields, domain: Callable[[object], str]) -> Federated:
    if fields.raw("trustDomain") is None:
        raise fields.error("trustDomain", "is missing: the other trust domain's name")
    found = Federated(fields.parsed("trustDomain", domain, None), fields.text("bundle"))
    fields.finish()
    return found
