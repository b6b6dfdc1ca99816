"""SVIDs from a CA that speaks Istio's gRPC API: istiod, istio-csr, ``tproxy control``.

The key is made here, for each certificate anew, and lives in memory only. The CA takes the identity from the token;
what the CSR says is a hint, which istio-csr compares with the token's (its pkg/server/auth.go) and others pass over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.message import DecodeError
from grpc import StatusCode

from tproxy.core.certificates.renewal import renew_at
from tproxy.core.fields import ConfigError
from tproxy.core.identity import Snapshot, SpiffeId
from tproxy.core.settings import IstioCa, KeyType
from tproxy.core.token import LIMIT, workload_of
from tproxy.identity import rpc
from tproxy.identity.files import read
from tproxy.identity.proof import Part, UnusableError, checked_bundle, proven
from tproxy.identity.source import SourceError
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

Call: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[IstioCertificateRequest, bytes]
DEADLINE = 10.0  # seconds for connecting, TLS and the answer
ANSWER_LIMIT = 1024 * 1024  # bytes; a chain and a bundle of hundreds of roots fit
LOOK = 5.0  # seconds between two looks at the clock, which may jump
LEAST = 1.0  # seconds between two requests, however short the certificates live


@dataclass(frozen=True, slots=True)
class Request:
    """A new key as PKCS#8 PEM, and the PEM request that proves we hold it."""

    key_pem: bytes = field(repr=False)
    csr_pem: bytes


class IstioCaSource:
    """Asks for a certificate, and for the next one in the middle of its life."""

    def __init__(self, settings: IstioCa, trust_domain: str, deadline: float = DEADLINE) -> None:
        self.name = f"Istio CA {settings.address}"
        self._settings, self._trust_domain, self._deadline = settings, trust_domain, deadline
        self._own: SpiffeId | None = None  # a service account never changes while its pod lives

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """See ``source.Source``."""
        while True:
            snapshot = await self._fetch()
            yield snapshot
            now = time.time()
            await sleep_until(max(now + LEAST, renew_at(now, snapshot.svid.not_after, random.random())))

    async def _fetch(self) -> Snapshot:
        token, roots = self._token(), self._roots()
        wanted = await asyncio.to_thread(new_request, self._settings.key_type, workload_of(token, self._trust_domain))
        answer = await self._ask(token, roots, wanted.csr_pem)
        snapshot = self._checked(answer, wanted.key_pem)
        self._own = snapshot.svid.id
        return snapshot

    def _token(self) -> str:
        """Read anew, because kubelet replaces it; its words are shown to nobody but the CA."""
        path = self._settings.token
        try:
            data = read(path, "identity.istioCa.token").strip()
        except ConfigError as error:
            raise SourceError(self.name, str(error)) from error
        if len(data) > LIMIT:
            raise SourceError(self.name, f"the token file {path} has {len(data)} bytes, more than {LIMIT}")
        token = data.decode("ascii", "replace")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise SourceError(self.name, f"the token file {path} holds more than one word of printable ASCII")
        return token

    def _roots(self) -> bytes:
        path = self._settings.roots
        try:
            roots = checked_bundle(read(path, "identity.istioCa.roots"))
            x509.load_pem_x509_certificates(roots)  # gRPC would not say what is wrong with them
        except ConfigError as error:
            raise SourceError(self.name, str(error)) from error
        except ValueError as error:
            why = error.why if isinstance(error, UnusableError) else f"is damaged: {error}"
            raise SourceError(self.name, f"{path}: identity.istioCa.roots: {why}") from error
        return roots

    async def _ask(self, token: str, roots: bytes, csr: bytes) -> IstioCertificateResponse:
        """One call over a channel of its own: roots rotate, and an idle channel costs memory for hours."""
        settings = self._settings
        named = settings.server_name or settings.address.rpartition(":")[0].strip("[]")
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
        request = IstioCertificateRequest(csr=csr.decode("ascii"), validity_duration=settings.ttl)
        metadata = (("authorization", f"Bearer {token}"), ("clusterid", settings.cluster))
        arguments = rpc.options(ANSWER_LIMIT, named)
        way = rpc.way(self.name, settings.address, self._deadline)
        async with way as target, grpc.aio.secure_channel(target, credentials, options=arguments) as channel:
            call: Call = channel.unary_unary(CREATE_CERTIFICATE, IstioCertificateRequest.SerializeToString)
            try:
                raw = await call(request, metadata=metadata, timeout=self._deadline)
                return IstioCertificateResponse.FromString(raw)
            except grpc.aio.AioRpcError as error:
                raise rpc.failure(self.name, error, self._advice(), token) from None  # its cause may repeat the token
            except DecodeError as error:
                raise SourceError(self.name, f"its answer is not Istio's: {error}") from error

    def _advice(self) -> dict[StatusCode, str]:
        token = self._settings.token
        return {
            StatusCode.UNAUTHENTICATED: f"the CA refuses the token in {token}: expired, or for another audience?",
            StatusCode.PERMISSION_DENIED: f"the CA knows the token in {token} but gives it no certificate",
            StatusCode.DEADLINE_EXCEEDED: f"no answer within {self._deadline:g} s",
            StatusCode.RESOURCE_EXHAUSTED: f"the answer is larger than {ANSWER_LIMIT} bytes, or the CA is overloaded",
        }

    def _checked(self, answer: IstioCertificateResponse, key: bytes) -> Snapshot:
        """Leaf and intermediates come first; the last entry holds the roots, all of them."""
        *chain, roots = list(answer.cert_chain) or [""]
        if not chain:
            raise SourceError(self.name, f"its answer has {len(answer.cert_chain)} entries: no leaf and roots")
        bundles = {self._trust_domain: roots.encode()}
        try:
            found = proven("".join(chain).encode(), key, bundles, self._trust_domain, time.time())
        except UnusableError as error:
            why = "the CA signed another key than ours" if error.part is Part.PAIR else f"in its answer {error}"
            raise SourceError(self.name, why) from error
        if self._own not in (None, found.svid.id):
            raise SourceError(self.name, f"the CA calls us {found.svid.id}, but we are {self._own}")
        return found


def new_request(kind: KeyType, own: SpiffeId | None) -> Request:
    """A key and a CSR for it; runs in a thread, since an RSA key takes a tenth of a second and more."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind is KeyType.RSA:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if own is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(own))])
        builder = builder.add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Request(secret, builder.sign(key, hashes.SHA256()).public_bytes(pem))


async def sleep_until(moment: float, clock: Callable[[], float] = time.time, look: float = LOOK) -> None:
    """Until that moment on the wall's clock (unix seconds), which is looked at again and again, for it may jump."""
    while (left := moment - clock()) > 0:  # noqa: ASYNC110  # there is no event: clocks do not ring
        await asyncio.sleep(min(left, look))
