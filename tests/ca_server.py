"""A CA with Istio's gRPC API for tests: real gRPC, real TLS, and lies where a test wants them."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.control.store import signer
from tproxy.core.identity import SpiffeId
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

Answer = Callable[[IstioCertificateRequest, grpc.ServicerContext], IstioCertificateResponse | bytes]
LOCAL = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def server_pair(folder: Path, *names: x509.GeneralName) -> Pair:
    """A certificate for a server of these names, from the authority in ``folder``."""
    issuer, key, now = signer(folder), authority.new_key("ecdsa"), authority.utc_now()
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names or [LOCAL]), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )
    return Pair(made, key)


@dataclass
class Asked:
    """What callers asked, and how their headers were."""

    requests: list[IstioCertificateRequest] = field(default_factory=list)
    headers: list[dict[str, str | bytes]] = field(default_factory=list)
    changed: threading.Event = field(default_factory=threading.Event)
    port: int = 0


def issue(folder: Path, request: IstioCertificateRequest, who: str, life: float = 3600) -> list[str]:
    """Leaf, intermediate, root: an honest answer, for the key of the request."""
    csr = x509.load_pem_x509_csr(request.csr.encode())
    assert csr.is_signature_valid
    public, middle = csr.public_key(), signer(folder)
    assert isinstance(public, authority.PublicKey)
    leaf = authority.issue(middle, SpiffeId.parse(who), public, timedelta(seconds=life), authority.utc_now())
    root = (folder / "bundle.pem").read_text()
    return [Pair(leaf, middle.key).certificate_pem().decode(), middle.certificate_pem().decode(), root]


@contextmanager
def serve(folder: Path, answer: Answer, pair: Pair | None = None, port: int = 0) -> Iterator[Asked]:
    """The CA on 127.0.0.1; ``answer`` sees every request."""
    asked = Asked()

    def create(raw: bytes, context: grpc.ServicerContext) -> bytes:
        request = IstioCertificateRequest.FromString(raw)
        asked.requests.append(request)
        asked.headers.append(dict(context.invocation_metadata()))
        asked.changed.set()
        found = answer(request, context)
        return found if isinstance(found, bytes) else found.SerializeToString()

    service, _, method = CREATE_CERTIFICATE[1:].partition("/")
    handlers = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(create)})
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handlers], options=[("grpc.so_reuseport", 0)])
    own = pair or server_pair(folder)
    chain = own.certificate_pem() + signer(folder).certificate_pem()
    credentials = grpc.ssl_server_credentials([(own.key_pem(), chain)])
    asked.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield asked
    finally:
        server.stop(0).wait()
