"""A SPIFFE Workload API for tests: real gRPC on a real socket, and lies where a test wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tproxy.wire import FETCH_X509_BUNDLES, FETCH_X509_SVID, WORKLOAD_HEADER
from tproxy.wire.workload_pb2 import X509SVID, X509BundlesResponse, X509SVIDResponse

Stream = Callable[[grpc.ServicerContext], Iterable[X509SVIDResponse | bytes]]


def der(pem: bytes) -> bytes:
    """Certificates as the Workload API has them: DER, one after the other."""
    return b"".join(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))


def svid(who: str, chain: bytes, key: bytes, bundle: bytes, hint: str = "") -> X509SVID:
    """One SVID of PEM parts."""
    secret = load_pem_private_key(key, None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return X509SVID(spiffe_id=who, x509_svid=der(chain), x509_svid_key=secret, bundle=der(bundle), hint=hint)


def wait(context: grpc.ServicerContext) -> None:
    """Until the caller is gone."""
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(60)


@dataclass
class Asked:
    """How often the stream was asked for."""

    calls: int = 0
    sent: int = 0
    headers: list[dict[str, str | bytes]] = field(default_factory=list)


@contextmanager
def serve(endpoint: str, stream: Stream) -> Iterator[Asked]:
    """A Workload API at ``unix:///path`` or ``127.0.0.1:port``; ``stream`` makes the messages of each call."""
    asked = Asked()

    def checked(context: grpc.ServicerContext) -> None:
        headers = dict(context.invocation_metadata())
        asked.headers.append(headers)
        if headers.get(WORKLOAD_HEADER[0]) != WORKLOAD_HEADER[1]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")

    def svids(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        checked(context)
        asked.calls += 1
        for message in stream(context):
            asked.sent += 1
            yield message if isinstance(message, bytes) else message.SerializeToString()

    def bundles(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        checked(context)
        for message in stream(context):
            assert isinstance(message, X509SVIDResponse)
            found = {f"spiffe://{one.spiffe_id.split('/')[2]}": one.bundle for one in message.svids}
            yield X509BundlesResponse(bundles=found, crl=message.crl).SerializeToString()

    service, _, fetch = FETCH_X509_SVID[1:].partition("/")
    methods = {
        fetch: grpc.unary_stream_rpc_method_handler(svids),
        FETCH_X509_BUNDLES.rpartition("/")[2]: grpc.unary_stream_rpc_method_handler(bundles),
    }
    handlers = [grpc.method_handlers_generic_handler(service, methods)]
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(4), handlers=handlers, options=unlimited)
    server.add_insecure_port(endpoint)
    server.start()
    try:
        yield asked
    finally:
        server.stop(0).wait()
        if endpoint.startswith("unix:"):
            Path(endpoint.removeprefix("unix://")).unlink(missing_ok=True)
