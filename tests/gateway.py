"""A gateway of our own process on loopback, Istio's YAML for it, and real backends: nginx with TLS, and a raw one."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from tproxy.control import authority
from tproxy.world.ports import free_port as free_port  # noqa: PLC0414  # many tests take it from here
from tproxy.world.process import Process, wait_for

TPROXY = str(Path(sys.executable).with_name("tproxy"))
ENV = {"PATH": os.environ["PATH"]}
CUT_OFF = (16, 35, 55, 56)  # curl's exit codes: it was in the handshake, or writing or reading already (TLS 1.3)


def secret(name: str, namespace: str, crt: bytes, key: bytes, **more: bytes) -> dict[str, Any]:
    """As ``kubectl create secret tls`` makes it."""
    meta = {"name": name, "namespace": namespace}
    data = {"tls.crt": crt, "tls.key": key, **more}
    plain = {entry: base64.b64encode(value).decode() for entry, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": plain}


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """In files."""
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    for path, text in zip(paths, self_signed(name), strict=True):
        path.write_bytes(text)
    return paths


def self_signed(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, for a name and a level below it."""
    key, now = authority.new_key("ecdsa"), authority.utc_now()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"*.{name}")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = authority.Pair(made, key)
    return pair.certificate_pem(), pair.key_pem()


@dataclass
class Nginx:
    """TLS backends, each with a certificate and a text of its own."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, **servers: str) -> Nginx:
        """``name="options of listen;directives"``: answers with its name, the SNI and who the client is said to be."""
        parts = []
        for name, more in servers.items():
            options, _, directives = more.partition(";")
            crt, key = certificate(self.folder, f"{name}.example.com")
            port = self.ports[name] = free_port()
            parts.append(
                f"server {{ listen 127.0.0.1:{port} ssl {options}; ssl_certificate {crt}; ssl_certificate_key {key};"
                f' {directives} location / {{ return 200 "{name} $ssl_server_name $proxy_protocol_addr\\n"; }} }}'
            )
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log; worker_processes 1;\n"
            f"events {{}}\nhttp {{ access_log off; ssl_protocols TLSv1.2 TLSv1.3; {' '.join(parts)} }}\n"
        )
        program = shutil.which("nginx", path=f"{ENV['PATH']}:/usr/sbin")
        assert program is not None
        self.process = subprocess.Popen([program, "-c", conf, "-p", self.folder])
        for port in self.ports.values():
            wait_for(lambda port=port: listens(port), 10, f"nginx on {port}")  # type: ignore[misc]
        return self

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Raw:
    """A backend that keeps what it is sent, echoes it if asked to, and can be told to end."""

    def __init__(self, echo: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.echo, self.got, self.ended = echo, list[bytearray](), list[str]()
        self.socks: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.socks.append(sock)
                self.got.append(into := bytearray())
                threading.Thread(target=self._read, args=(sock, into), daemon=True).start()

    def _read(self, sock: socket.socket, into: bytearray) -> None:
        try:
            while data := sock.recv(65536):
                into += data
                if self.echo:
                    sock.sendall(data)
            self.ended.append("fin")
            if self.echo:
                sock.close()
        except OSError:
            self.ended.append("reset")


def gateway_yaml(*servers: dict[str, Any], name: str = "gw") -> dict[str, Any]:
    """A Gateway."""
    return _object("Gateway", name, "istio-system", selector={"istio": "ingressgateway"}, servers=list(servers))


def server(port: int, protocol: str, *hosts: str, **tls: str) -> dict[str, Any]:
    """One server of it; its port's name is made up."""
    made: dict[str, Any] = {"port": {"number": port, "name": f"p-{port}-{hosts[0]}", "protocol": protocol}}
    return {**made, "hosts": list(hosts), **({"tls": tls} if tls else {})}


def virtual(name: str, hosts: Sequence[str], **rules: Any) -> dict[str, Any]:
    """A VirtualService bound to it."""
    return _object("VirtualService", name, "shop", hosts=list(hosts), gateways=["istio-system/gw"], **rules)


def sni(names: Sequence[str], *backends: str | tuple[str, int]) -> dict[str, Any]:
    """A tls rule; backends are hosts of entries, or such with a weight."""
    return {"match": [{"sniHosts": list(names)}], "route": [_destination(backend) for backend in backends]}


def tcp(port: int, *backends: str | tuple[str, int]) -> dict[str, Any]:
    """A tcp rule."""
    return {"match": [{"port": port}], "route": [_destination(backend) for backend in backends]}


def _destination(backend: str | tuple[str, int]) -> dict[str, Any]:
    host, weight = backend if isinstance(backend, tuple) else (backend, 0)
    return {"destination": {"host": host}, **({"weight": weight} if weight else {})}


def entry(host: str, *ports: int) -> dict[str, Any]:
    """A static ServiceEntry with an endpoint on loopback for each port."""
    endpoints = [{"address": "127.0.0.1", "ports": {"any": port}} for port in ports]
    one = [{"number": 443, "name": "any", "protocol": "TLS"}]
    return _object("ServiceEntry", host, "shop", hosts=[host], ports=one, resolution="STATIC", endpoints=endpoints)


def _object(kind: str, name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": meta, "spec": spec}


def write(path: Path, *objects: dict[str, Any]) -> None:
    """Into a file, at once as editors and kubelets do; JSON is YAML."""
    path.parent.mkdir(exist_ok=True)
    new = path.parent.with_name(f"{path.parent.name}-{path.name}.new")  # else its coming would be a change, too
    new.write_text("\n---\n".join(json.dumps(thing, indent=1) for thing in objects))
    new.rename(path)


@dataclass
class Gateway:
    """``tproxy gateway run`` on a folder."""

    folder: Path
    process: Process

    def records(self, **wanted: str) -> list[dict[str, Any]]:
        """Those whose fields are so."""
        lines = [json.loads(line) for line in self._lines() if line.startswith("{")]
        return [line for line in lines if "direction" in line and wanted.items() <= line.items()]

    def _lines(self) -> list[str]:
        """Whole lines only: the last one may still be being written."""
        return self.process.log.read_text().split("\n")[:-1]

    def record(self, **wanted: str) -> dict[str, Any]:
        """The first such, awaited."""
        return wait_for(lambda: self.records(**wanted), 10, f"a record with {wanted}", self.process)[0]

    def said(self, text: str, times: int = 1) -> None:
        """Wait until it has logged that, so often."""
        wait_for(lambda: self.process.log.read_text().count(text) >= times, 10, f"{times} times {text!r}", self.process)


def started(folder: Path, *options: str) -> Process:
    """A gateway that is perhaps not ready yet."""
    argv = [TPROXY, "gateway", "run", "--config", str(folder), "--log-format", "json", "--drain", "1"]
    argv += ["--metrics-port", "0", "--ready-port", "0", "--admin-port", "0", "--stats-port", "0", *options]
    log = folder.parent / f"{folder.name}-{free_port()}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=ENV)
    return Process(popen, argv, log, "this machine")


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Gateway]:
    """A gateway that is ready, and ended afterwards."""
    made = Gateway(folder, started(folder, *options))
    try:
        made.said("ready: ports")
        yield made
        assert made.process.stop() == 0, made.process.tail()
        assert "Traceback" not in made.process.log.read_text(), made.process.tail()
    finally:
        made.process.kill()


def tls_client(name: str | None, **options: Any) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client without a socket, so that its bytes can be cut as one likes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for key, value in options.items():
        setattr(context, key, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing, server_hostname=name), incoming, outgoing


def finish(sock: socket.socket, client: tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]) -> None:
    """The rest of a handshake whose hello has been sent."""
    tls, incoming, outgoing = client
    while True:
        try:
            tls.do_handshake()
            sock.sendall(outgoing.read())
            return
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            if not (data := sock.recv(65536)):
                raise ConnectionError("closed in the handshake") from None
            incoming.write(data)


def hello_of(client: tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]) -> bytes:
    """Its first flight."""
    with suppress(ssl.SSLWantReadError):
        client[0].do_handshake()
    return client[2].read()


def curl(name: str, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    """By this name, over loopback."""
    argv = ["curl", "-sS", "-k", "-m", "8", "--resolve", f"{name}:{port}:127.0.0.1", *options]
    return subprocess.run([*argv, f"https://{name}:{port}/"], capture_output=True, text=True, timeout=20, check=False)
