"""The Secrets and ConfigMaps that the suite's Go code makes before its tests run."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tproxy.control import authority

INFRA, APP, WEB = (f"gateway-conformance-{name}" for name in ("infra", "app-backend", "web-backend"))
Document = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str


def _issue(names: tuple[str, ...], ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> tuple[Any, Any]:
    key, now = ec.generate_private_key(ec.SECP256R1()), authority.utc_now()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca[0].subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca is None, None), critical=True)
    )
    if ca:
        sans = [x509.UniformResourceIdentifier(n) if "://" in n else x509.DNSName(n) for n in names]
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        made = made.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        made = made.add_extension(both, critical=False)
    return made.sign(ca[1] if ca else key, hashes.SHA256()), key


def _pem(certificate: Any, key: Any) -> Pair:
    plain = serialization.NoEncryption()
    coded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), coded.decode())


@cache
def pairs() -> dict[tuple[str, str], Pair]:
    """By namespace and name; a name that ends in ``ca-certificate`` is a ConfigMap's, the others are Secrets'."""
    found: dict[tuple[str, str], Pair] = {}

    def both(authority_name: str, *leaves: tuple[tuple[str, str], tuple[str, ...]]) -> None:
        root = _issue((authority_name,), None)
        found[INFRA, authority_name] = _pem(*root)
        for key, names in leaves:
            found[key] = _pem(*_issue(names, root))

    here = "tls-validity-checks"
    both("mismatch-ca-certificate")
    both("ca-certificate", ((WEB, "certificate"), ("*.example.com",)))
    both(f"{here}-server-ca-certificate", ((INFRA, f"{here}-certificate"), ("*", "*.org", "*.wildcard.org")))
    both(f"{here}-ca-certificate", ((INFRA, f"{here}-client-certificate"), ("client.example.org",)))
    both(f"{here}-per-port-ca-certificate", ((INFRA, f"{here}-per-port-client-certificate"), ("port.example.org",)))
    uri = "spiffe://abc.example.com/test-identity"
    both(
        "tls-checks-ca-certificate",
        ((INFRA, "tls-checks-certificate"), ("abc.example.com", uri, "other.example.com")),
        ((INFRA, "tls-checks-client-certificate"), ("client.example.com",)),
    )
    passed = (("abc.example.com",), "tls-passthrough-checks-certificate")
    both("passthrough-ca-certificate", ((INFRA, passed[1]), passed[0]), ((APP, passed[1]), passed[0]))
    both("terminate-ca-certificate", ((INFRA, "tls-terminate-checks-certificate"), ("tls.example.com",)))
    return found


def objects() -> list[Document]:
    """As they stand in the cluster."""
    made = []
    for (namespace, name), pair in pairs().items():
        about = {"name": name, "namespace": namespace}
        if name.endswith("ca-certificate"):
            made.append(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"ca.crt": pair.certificate}}
            )
        else:
            data = {"tls.crt": _coded(pair.certificate), "tls.key": _coded(pair.key)}
            kind = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
            made.append({**kind, "metadata": about, "data": data})
    return made


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
