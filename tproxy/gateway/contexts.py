"""Which certificate a client is shown, and with what a backend is called: contexts, made when they are first needed.

A reload keeps the contexts of what has not changed, so that tickets still resume. As Envoy chooses: the exact name, a
wildcard of one level, the first certificate; of one name a certificate for each kind of key, ECDSA for who can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509

from tproxy.core.certificates.subject import is_for
from tproxy.core.reason import Deny, Reason
from tproxy.core.routes import BackendTls, ClientCheck, ServerTls, TlsMode
from tproxy.gateway.secrets import Material
from tproxy.identity import fronts
from tproxy.identity.fronts import Bounds, Check, Judge
from tproxy.identity.leaf import KeyPair, hash_of, key_hash_of, names_of
from tproxy.identity.openssl import Role, TlsError


@dataclass(frozen=True, slots=True)
class Choice:
    """Certificates of one server by the names that they are for; of each name one for each kind of key."""

    names: Mapping[str, tuple[Material, ...]]
    first: tuple[Material, ...]

    @classmethod
    def of(cls, found: Iterable[Material]) -> Choice:
        """In the order in which they are configured; each has a leaf."""
        names: dict[str, dict[str, Material]] = {}
        usable = [(one, one.leaf) for one in found if one.leaf is not None]
        for one, leaf in usable:
            for name in leaf.names:
                names.setdefault(name, {}).setdefault(leaf.kind, one)
        first: dict[str, Material] = {}
        for one, leaf in usable:
            if not first or set(leaf.names) & set(usable[0][1].names):
                first.setdefault(leaf.kind, one)
        return cls({name: tuple(kinds.values()) for name, kinds in names.items()}, tuple(first.values()))

    def find(self, sni: str) -> tuple[Material, ...]:
        """For a client that asks for this name; empty only if there is no certificate at all."""
        return self.names.get(sni) or self.names.get(f"*.{sni.partition('.')[2]}") or self.first


@dataclass(slots=True)
class Contexts:
    """One generation of credentials; ``made`` is shared with the next."""

    material: Mapping[str, Material] = field(default_factory=dict)
    _made: dict[object, Role] = field(default_factory=dict)
    _used: set[object] = field(default_factory=set)
    _choices: dict[ServerTls, Choice] = field(default_factory=dict)

    def following(self, material: Mapping[str, Material]) -> Contexts:
        """The next generation: what was used in this one and is the same in both is kept."""
        return Contexts(material, {key: role for key, role in self._made.items() if key in self._used})

    def server(self, tls: ServerTls, sni: str, alpn: tuple[str, ...]) -> Role | Deny:
        """For a client that asks for this name."""
        choice = self._choices.get(tls)
        if choice is None:
            found = [self.material[name] for name in tls.secrets if name in self.material]
            choice = self._choices[tls] = Choice.of(found)
        certificates = choice.find(sni.lower())
        if not certificates:
            named = f"Secret {', '.join(tls.secrets)} is missing or unusable" if tls.secrets else "none is configured"
            return Deny(Reason.NO_CREDENTIALS, f"no certificate to show: {named}")
        rest = (alpn, tls.mode, tls.check, tls.minimum, tls.maximum, tls.ciphers)
        check = tls.check
        digests = tuple(one.digest for one in certificates) + self._digests((*check.ca, check.crl) if check else ())
        return self._kept(
            (digests, rest),
            lambda: fronts.server(
                [one.pair for one in certificates],
                alpn,
                Bounds(tls.minimum, tls.maximum, tls.ciphers),
                None if check is None else self._check(tls.mode, check),
            ),
        )

    def client(self, tls: BackendTls, alpn: tuple[str, ...]) -> Role | Deny:
        """Towards a backend."""
        if tls.fault:
            return Deny(Reason.NO_CREDENTIALS, tls.fault)
        if missing := [name for name in (tls.secret, *tls.ca, tls.crl) if name and name not in self.material]:
            return Deny(Reason.NO_CREDENTIALS, f"{missing[0]} is missing or unusable")
        return self._kept(
            (tls.mode, alpn, tls.insecure, not tls.ca, self._digests((tls.secret, *tls.ca, tls.crl))),
            lambda: fronts.client(
                self._pair(tls.secret),
                alpn,
                Bounds(),
                Check(
                    b"".join(self.material[name].ca for name in tls.ca) if tls.ca else None,
                    self.material[tls.crl].crl if tls.crl else b"",
                    _of_name,
                    insecure=tls.insecure,
                ),
            ),
        )

    def _kept(self, key: object, make: Callable[[], Role]) -> Role | Deny:
        role = self._made.get(key)
        if role is None:
            try:
                role = self._made[key] = make()
            except TlsError as error:
                return Deny(Reason.NO_CREDENTIALS, f"TLS cannot be set up as configured: {error.why}")
        self._used.add(key)
        return role

    def _check(self, mode: TlsMode, check: ClientCheck) -> Check:
        """Where a CA is missing nobody's certificate holds."""
        ca = b"".join(self.material[name].ca for name in check.ca if name in self.material)
        crl = self.material[check.crl].crl if check.crl in self.material else b""
        return Check(ca, crl, judge_of(check), mode is TlsMode.MUTUAL, check.insecure)

    def _digests(self, names: Iterable[str]) -> tuple[bytes, ...]:
        return tuple(self.material[name].digest if name in self.material else b"" for name in names)

    def _pair(self, name: str) -> KeyPair | None:
        return self.material[name].pair if name else None


def judge_of(check: ClientCheck) -> Judge:
    """What is asked of a client's certificate besides its issuer."""

    def judge(leaf: x509.Certificate, _: tuple[str, ...]) -> str:
        if check.names and not is_for(names_of(leaf), check.names):
            return f"the client's certificate is for {names_of(leaf)}, not for {', '.join(check.names)}"
        hashes, keys = check.hashes, check.keys
        if (hashes or keys) and hash_of(leaf) not in hashes and key_hash_of(leaf) not in keys:
            return f"the hash of the client's certificate, {hash_of(leaf)}, is not one that is configured"
        return ""

    return judge


def _of_name(leaf: x509.Certificate, wanted: tuple[str, ...]) -> str:
    """What is asked of a backend's."""
    if not wanted:
        return "no name is known that the backend's certificate must be for: set sni or subjectAltNames"
    return "" if is_for(names_of(leaf), wanted) else f"its certificate is for {names_of(leaf)}, not {', '.join(wanted)}"
