"""Istio's TLS settings: of a Gateway's server (ServerTLSSettings), and of a DestinationRule (ClientTLSSettings).

Checked as Istio's webhook does, and with its sentences. What Secrets lack is a warning: only handshakes are refused.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from tproxy.core.fields import Fields
from tproxy.core.routes import BackendTls, ClientCheck, ServerTls, TlsMode
from tproxy.gateway.findings import Findings, ignore, then
from tproxy.gateway.objects import Object
from tproxy.gateway.secrets import Material, Vault

_MODES = {
    **dict.fromkeys(("PASSTHROUGH", "AUTO_PASSTHROUGH"), TlsMode.PASSTHROUGH),
    "SIMPLE": TlsMode.TERMINATE,
    "MUTUAL": TlsMode.MUTUAL,
    "ISTIO_MUTUAL": TlsMode.MESH,
    "OPTIONAL_MUTUAL": TlsMode.OPTIONAL_MUTUAL,
}
_VERSIONS = {"TLS_AUTO": "", "TLSV1_0": "1.0", "TLSV1_1": "1.1", "TLSV1_2": "1.2", "TLSV1_3": "1.3"}
_AEAD = ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
_CBC = ("AES128-SHA", "AES256-SHA")
# networking.istio.io, ServerTLSSettings.cipherSuites
CIPHERS = frozenset(
    (
        *(f"ECDHE-{key}-{suite}" for key in ("ECDSA", "RSA") for suite in (*_AEAD, *_CBC)),
        *("AES128-GCM-SHA256", "AES256-GCM-SHA384", *_CBC, "DES-CBC3-SHA"),
    )
)
_CHECKS = ("subjectAltNames", "verifyCertificateSpki", "verifyCertificateHash")
_ALL = (
    *("mode", "httpsRedirect", "serverCertificate", "privateKey", "caCertificates", "caCrl", "tlsCertificates"),
    *("credentialName", "credentialNames", "caCertCredentialName", "ecdhCurves", "cipherSuites"),
    *("subjectAltNames", "verifyCertificateSpki", "verifyCertificateHash", "minProtocolVersion", "maxProtocolVersion"),
)
_FILES = ("serverCertificate", "privateKey", "caCertificates", "caCrl")


def server_tls(thing: Object, tls: Fields, findings: Findings, vault: Vault) -> ServerTls:
    """How a server of a Gateway ends TLS, or that it does not."""
    mode = tls.choice("mode", "PASSTHROUGH", _MODES)
    _spelt(tls)
    secrets = tls.items("credentialNames", str) or tuple(filter(None, (tls.text("credentialName"),)))
    ignore(thing, tls, ("ecdhCurves",), findings)
    reader = _Server(thing, tls, findings, vault)
    _credentials(tls, mode, secrets)
    if _MODES[mode] is TlsMode.PASSTHROUGH:
        if secrets or any(tls.raw(key) for key in (*_FILES, *_CHECKS, "tlsCertificates")):
            findings.warn(thing, tls.path, f"{mode} mode does not use certificates, they will be ignored")
        for key in ("minProtocolVersion", "maxProtocolVersion", "cipherSuites", "caCertCredentialName"):
            tls.raw(key)
        tls.finish()
        return ServerTls(TlsMode.PASSTHROUGH)
    if mode == "ISTIO_MUTUAL":
        return reader.of_mesh()
    full = tuple(reader.secret(name) for name in secrets)
    made = ServerTls(
        mode=_MODES[mode],
        secrets=full or reader.files(),
        check=reader.check(secrets, full) if _MODES[mode] is not TlsMode.TERMINATE else None,
        minimum=reader.version("minProtocolVersion") or "1.2",
        maximum=reader.version("maxProtocolVersion"),
        ciphers=reader.ciphers(),
    )
    tls.finish()
    return made


class _Server:
    """One server's settings."""

    def __init__(self, thing: Object, tls: Fields, findings: Findings, vault: Vault) -> None:
        self._thing, self._tls, self._findings, self._vault = thing, tls, findings, vault

    def _warn(self, key: str, why: str) -> None:
        self._findings.warn(self._thing, self._tls.name(key), why)

    def secret(self, name: str) -> str:
        """Its full name; without it handshakes are refused, and all else is served."""
        full, own = self._vault.credential(name, self._thing.namespace), self._thing.namespace
        if why := self._vault.missing(name, own) if full is None else self._vault.fault(full):
            self._warn("credentialName", then(why, "TLS handshakes for it are refused"))
        return full or f"{self._vault.namespace}/{name}"

    def of_mesh(self) -> ServerTls:
        """Our own SVID; versions, suites and CRLs are those of the mesh's configuration, but for the least version."""
        tls = self._tls
        ignore(self._thing, tls, ("maxProtocolVersion", "cipherSuites"), self._findings)
        made = ServerTls(
            TlsMode.MESH, check=self._checked(ClientCheck()), minimum=self.version("minProtocolVersion") or "1.2"
        )
        tls.finish()
        return made

    def files(self) -> tuple[str, ...]:
        """Certificates out of files."""
        entries = self._tls.each("tlsCertificates") or [self._tls]
        found = []
        for entry in entries:
            chain, key = entry.text("serverCertificate"), entry.text("privateKey")
            entry.raw("caCertificates")
            if chain and key:
                made = self._vault.files(chain, key)
                if isinstance(made, Material):
                    found.append(made.name)
                else:
                    self._warn("serverCertificate", f"{made}; TLS handshakes for it are refused")
        return tuple(found)

    def check(self, names: tuple[str, ...], secrets: tuple[str, ...]) -> ClientCheck:
        """Whose certificates are accepted: the CA is in the Secret itself, in ``NAME-cacert``, or where it is said."""
        ca = self._ca(names, secrets)
        return self._checked(ClientCheck(ca=(ca,), crl=ca))

    def _checked(self, check: ClientCheck) -> ClientCheck:
        return replace(
            check,
            names=self._tls.items("subjectAltNames", str),
            hashes=self._tls.items("verifyCertificateHash", _hash),
            keys=self._tls.items("verifyCertificateSpki", _key_hash),
        )

    def _ca(self, names: tuple[str, ...], secrets: tuple[str, ...]) -> str:
        if path := self._tls.text("caCertificates"):
            made = self._vault.files("", "", path, self._tls.text("caCrl"))
            if isinstance(made, Material):
                return made.name
            self._warn("caCertificates", f"{made}; TLS handshakes for it are refused")
        own = self._tls.text("caCertCredentialName")
        tried = [own] if own else [f"{name}-cacert" for name in names]
        found = [self._vault.credential(name, self._thing.namespace) for name in tried]
        for full in (*(filter(None, found)), *secrets):
            if not self._vault.ca_fault(full):
                return full
        if not path:
            why = f"no client CA: neither {' nor '.join((*tried, *secrets)) or 'a Secret'} has ca.crt or cacert"
            self._warn("credentialName", f"{why}; TLS handshakes for it are refused")
        return ""

    def version(self, key: str) -> str:
        """Of a bound; empty where none is set."""
        found = _VERSIONS[self._tls.choice(key, "TLS_AUTO", _VERSIONS)]
        if key == "minProtocolVersion" and found in ("1.0", "1.1") and not self._tls.raw("cipherSuites"):
            self._warn(
                key,
                "TLS version below TLSV1_2 require setting compatible ciphers as by default they no longer"
                " include compatible ciphers.",
            )
        return found

    def ciphers(self) -> tuple[str, ...]:
        """Those that are known; others are left out, as in Istio."""
        asked = self._tls.items("cipherSuites", str)
        unknown = [name for name in asked if name not in CIPHERS]
        if unknown:
            self._warn("cipherSuites", f"ignoring invalid cipher suites: [{' '.join(unknown)}]")
        return tuple(dict.fromkeys(name for name in asked if name in CIPHERS))


def _spelt(tls: Fields) -> None:
    """ConfigError for a field that nobody has; it is told before what its absence means."""
    twin = Fields(tls.data, tls.where, tls.path, tls.lines)
    twin.known.update(_ALL)
    twin.finish()


def _credentials(tls: Fields, mode: str, secrets: tuple[str, ...]) -> None:
    """What each mode needs and must not have."""
    files, several = tls.raw("serverCertificate") is not None, tls.raw("tlsCertificates")
    if mode == "ISTIO_MUTUAL" and secrets:
        raise tls.error("credentialName", "ISTIO_MUTUAL TLS cannot have associated credentialName")
    for key in (*_FILES, "tlsCertificates", "caCertCredentialName") if mode == "ISTIO_MUTUAL" else ():
        if tls.raw(key):
            raise tls.error(key, f"ISTIO_MUTUAL TLS cannot have associated {key}")
    if mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL") and not secrets and not several:
        if not files:
            raise tls.error("mode", f"{mode} TLS requires a server certificate", mode)
        if tls.raw("privateKey") is None:
            raise tls.error("mode", f"{mode} TLS requires a private key", mode)
        if mode == "MUTUAL" and tls.raw("caCertificates") is None and tls.raw("caCertCredentialName") is None:
            raise tls.error("mode", "MUTUAL TLS requires a client CA bundle", mode)
    if bool(secrets) + files + bool(several) > 1:
        why = "only one of credential_name, credential_names, server_certificate/private_key, tls_certificates"
        raise tls.error("credentialName", f"{why} should be specified")
    if mode == "SIMPLE" and tls.raw("caCrl") is not None:
        raise tls.error("caCrl", "CRL is not supported with SIMPLE TLS")
    if mode == "SIMPLE":
        for key in _CHECKS:
            if tls.raw(key):
                raise tls.error(key, "asks for a client's certificate, which SIMPLE TLS does not: set mode MUTUAL")


def _hash(text: object) -> str:
    """Hexadecimal, with or without colons."""
    plain = str(text).replace(":", "").lower()
    if len(plain) != 64 or set(plain) - set("0123456789abcdef"):
        raise ValueError("expected SHA-256 in 64 hexadecimal digits, with or without colons")
    return plain


def _key_hash(text: object) -> str:
    """base64, as of openssl dgst -sha256 -binary."""
    try:
        plain = base64.b64decode(str(text), validate=True)
    except ValueError:
        plain = b""
    if len(plain) != 32:
        raise ValueError("expected the base64 of a SHA-256")
    return plain.hex()


def client_tls(thing: Object, tls: Fields, host: str, findings: Findings, vault: Vault) -> BackendTls | None:
    """What a DestinationRule says of TLS towards ``host``; None: plaintext."""
    mode = tls.choice("mode", "DISABLE", ("DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"))
    sni, names = tls.text("sni"), tls.items("subjectAltNames", str)
    insecure, credential = tls.flag("insecureSkipVerify", False), tls.text("credentialName")
    paths = [tls.text(key) for key in ("clientCertificate", "privateKey", "caCertificates", "caCrl")]
    tls.finish()
    if mode == "DISABLE":
        return None
    if credential and any(paths):
        why = "cannot specify client certificates or CA certificate If credentialName is set"
        raise tls.error("credentialName", why, credential)
    if mode == "ISTIO_MUTUAL":
        if credential or any(paths):
            raise tls.error("mode", "client certificates must not be specified with ISTIO_MUTUAL", mode)
        return BackendTls(mode, sni, names)
    if mode == "MUTUAL" and not credential and not (paths[0] and paths[1]):
        raise tls.error("mode", "client certificate and private key required for mutual tls", mode)
    secret, ca, crl, fault = _client_credentials(thing, mode, credential, paths, vault)
    if fault:
        findings.warn(thing, tls.path, then(fault, f"connections to {host} are refused"))
    return BackendTls(mode, sni, names, (ca,) if ca else (), crl, secret, insecure=insecure, fault=fault)


def _client_credentials(
    thing: Object, mode: str, credential: str, paths: list[str], vault: Vault
) -> tuple[str, str, str, str]:
    """Where our certificate, the backend's CA and its CRL are, and what is wrong with them."""
    if not credential:
        found = [
            vault.files(*given) if any(given) else None
            for given in ((paths[0], paths[1]), ("", "", paths[2], paths[3]))
        ]
        faults = [one for one in found if isinstance(one, str)]
        own, ca = (one.name if isinstance(one, Material) else "" for one in found)
        return (own if mode == "MUTUAL" else ""), ca, ca if paths[3] else "", "; ".join(faults)
    full = vault.credential(credential, thing.namespace)
    if full is None:
        return "", "", "", vault.missing(credential, thing.namespace)
    fault = vault.fault(full) if mode == "MUTUAL" else ""
    beside = vault.credential(f"{credential}-cacert", thing.namespace)
    cas = [name for name in (beside, full) if name is not None and not vault.ca_fault(name)]
    if not cas:
        fault = fault or f"Secret {full} has no ca.crt or cacert"
    return full if mode == "MUTUAL" else "", cas[0] if cas else "", cas[0] if cas else "", fault
