"""A ``tproxy control`` of the tests' own, as a process, and a client that calls it as istiod's clients do."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tproxy.control import authority, store, tokens
from tproxy.control.authority import PrivateKey
from tproxy.control.explain import certificates
from tproxy.control.state import State
from tproxy.core.identity import SpiffeId
from tproxy.wire import CREATE_CERTIFICATE
from tproxy.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tproxy.world.ports import free_port
from tproxy.world.process import Process, wait_for

DOMAIN = "test.local"
WEB = SpiffeId.workload(DOMAIN, "shop", "web")
HOUR = 3600


def csr(key: PrivateKey | None = None, uri: str = "") -> str:
    """A request as a client makes it, for any key; ``uri`` is what it would like to be."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=True)
    request = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


class Ca:
    """The server in a folder; it may be started, stopped and killed again and again."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder, self.dir = folder, folder / "ca"
        self.dir.exists() or store.create(self.dir, DOMAIN, "ecdsa")
        self.port, self.health = free_port(), free_port()
        listen = {"address": "127.0.0.1", "port": self.port, "health": self.health}
        self.config = {"dir": str(self.dir), "listen": listen, **config}
        self.process: Process | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> Ca:
        """Start it and wait until it is ready."""
        process = self.spawn()
        wait_for(lambda: self.page("/healthz/ready")[0] == 200, 20, "the CA is ready", process)
        return self

    def spawn(self) -> Process:
        """Start it."""
        path, log = self.folder / "control.yaml", self.folder / "control.log"
        path.write_text(yaml.safe_dump(self.config))
        argv = [sys.executable, "-m", "tproxy", "control", "--config", str(path), "--log-format", "json"]
        with log.open("ab") as out:
            popen = subprocess.Popen(argv, stdout=out, stderr=out)
        self.process = Process(popen, argv, log, "the tests")
        return self.process

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a health page; 0 if nobody listens."""
        http_ = http.client.HTTPConnection("127.0.0.1", self.health, timeout=5)
        try:
            http_.request("GET", path)
            answer = http_.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            http_.close()

    def running(self) -> Process:
        """The process, which must have been started."""
        assert self.process is not None
        return self.process

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self.hang_up()
        if self.process is not None:
            self.process.kill()

    def hang_up(self) -> None:
        """Close the client's connection; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def lines(self, event: str = "") -> list[dict[str, str]]:
        """What it wrote: records of this kind, or everything."""
        text = self.running().log.read_text(errors="replace")
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in found if not event or line.get("event") == event]

    def state(self) -> State:
        """A look at what it keeps; the caller closes it."""
        return State.open(self.dir)

    def token(self, workload: SpiffeId = WEB, seconds: int = HOUR, address: str = "", uses: int | None = None) -> str:
        """A join token."""
        state = self.state()
        try:
            return tokens.create(state, workload, int(authority.utc_now().timestamp()) + seconds, address, uses)
        finally:
            state.close()

    def channel(self, **options: Any) -> grpc.Channel:
        """A connection that trusts the authority's present bundle."""
        credentials = grpc.ssl_channel_credentials((self.dir / "bundle.pem").read_bytes())
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, **options)

    def call(self, token: str, request: str = "", seconds: int = 0, **more: Any) -> list[str]:
        """CreateCertificate's chain; grpc.RpcError otherwise. ``more`` goes into the metadata of the message."""
        self._channel = self._channel or self.channel()
        method = unary(self._channel)
        message = IstioCertificateRequest(csr=request or csr(), validity_duration=seconds)
        if more:
            message.metadata.update(more)
        metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        return list(method(message, metadata=metadata, timeout=15).cert_chain)

    def refused(self, token: str, request: str = "", **more: Any) -> tuple[str, str]:
        """The code and the details of a call that must fail."""
        try:
            self.call(token, request, **more)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError("the call was not refused")


def unary(channel: grpc.Channel) -> Any:
    """The method as its clients know it."""
    return channel.unary_unary(
        CREATE_CERTIFICATE,
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )


def leaf(chain: list[str]) -> x509.Certificate:
    """The first certificate of a chain."""
    return certificates(chain[0].encode())[0]


def uris(certificate: x509.Certificate) -> list[str]:
    """Who it is."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def started(folder: Path, **config: Any) -> Iterator[Ca]:
    """A running CA for a fixture; it is gone afterwards."""
    ca = Ca(folder, **config)
    try:
        yield ca.start()
    finally:
        ca.kill()


def metric(page: str, name: str) -> float:
    """A sample's value, 0 if there is none yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0
